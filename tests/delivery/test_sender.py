"""The sender's retry loop: it waits, splits batches, and gives up in time."""

import itertools
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_cbtop_exporter.config import RetryConfig
from otel_cbtop_exporter.delivery.sender import Sender
from otel_cbtop_exporter.health import HealthCounters
from otel_cbtop_exporter.own_log import RateLimitedLog
from otel_cbtop_exporter.sinks.base import Record, Rejection, WriteResult
from otel_cbtop_exporter.testing import FakeClock, RecordingSink
from tests.delivery.records import away, busy, named, records, refused_for, too_large_over


def deliver(batch):
    return WriteResult(delivered=batch)


KEPT = "not taken (kept, to be tried again)"


class Bench:
    """A sender whose sink gives the answers it was told to, and whose clock only waits advance."""

    def __init__(self, *answers, jitter=0.5, woken=False, max_batch_events=None, **retry):
        self.clock = FakeClock()
        self.sink = RecordingSink(*answers)
        self.counters = HealthCounters()
        self.waits = []
        self.woken = woken
        self.sender = Sender(
            self.sink,
            counters=self.counters,
            log=RateLimitedLog(logging.getLogger("otel_cbtop_exporter"), self.clock.monotonic),
            retry=RetryConfig(**retry),
            max_batch_events=max_batch_events,
            max_batch_bytes=None,
            clock=self.clock,
            jitter=lambda: jitter,
            wait=self._wait,
            spooled=True,
        )

    def _wait(self, seconds):
        self.waits.append(seconds)
        self.clock.advance(seconds)
        return self.woken

    def send(self, batch, within=10.0):
        return self.sender.send(batch, self.clock.monotonic() + within)

    def attempt(self, batch, within=10.0):
        return self.sender.attempt(batch, self.clock.monotonic() + within)


def always(answer):
    return itertools.repeat(answer, 10_000)


def test_what_is_delivered_is_counted():
    """A successful write delivers all records and counts them once."""
    bench = Bench()
    batch = records(3)
    sent = bench.send(batch)
    assert (sent.delivered, sent.rejected, sent.kept) == (batch, [], [])
    health = bench.counters.snapshot()
    assert (health.events_written, health.write_errors, health.connected) == (3, 0, True)
    assert health.last_write_ns == bench.clock.time_ns()


def test_what_is_kept_is_tried_again_with_growing_waits():
    """Kept records are tried again after waits that double, with jitter."""
    bench = Bench(away, away, away)
    sent = bench.send(records(2))
    assert not sent.kept
    assert bench.waits == [0.05, 0.1, 0.2]
    assert len(bench.sink.writes) == 4


def test_retries_end():
    """After max_retries the kept records are handed back to the caller."""
    bench = Bench(*always(away), max_retries=2)
    batch = records(2)
    sent = bench.send(batch)
    assert sent.kept == batch
    assert len(bench.sink.writes) == 3
    assert sent.error_type == "ConnectionRefusedError"
    assert bench.counters.snapshot().write_errors == 3
    assert not bench.counters.snapshot().connected


def test_no_retry_means_one_try():
    """max_retries=0 tries once and does not wait."""
    bench = Bench(*always(away), max_retries=0)
    assert bench.send(records(1)).kept
    assert bench.waits == []


def test_retry_after_is_waited_for():
    """A Retry-After that is longer than our own wait is the wait."""
    bench = Bench(busy(3.0))
    assert not bench.send(records(1)).kept
    assert bench.waits == [3.0]


def test_it_gives_up_before_a_wait_that_would_pass_the_deadline():
    """A wait that would end after the deadline is not begun."""
    bench = Bench(busy(30.0))
    assert bench.send(records(1), within=10.0).kept
    assert bench.waits == []


def test_shutdown_wakes_it():
    """After a shutdown has interrupted a wait, the sender does not wait again."""
    bench = Bench(*always(away), woken=True)
    assert bench.send(records(1)).kept
    assert len(bench.waits) == 1


def test_nothing_is_begun_after_the_deadline():
    """After the deadline everything is kept without a write."""
    bench = Bench()
    sent = bench.attempt(records(2), within=0.0)
    assert (len(sent.kept), sent.error_type, bench.sink.writes) == (2, "timeout", [])


def test_a_sink_is_told_what_is_left_of_the_time():
    """`write` receives the time left until the deadline."""
    bench = Bench()
    told = []
    bench.sink.write = lambda batch, seconds: told.append(seconds) or WriteResult(delivered=batch)
    bench.attempt(records(1), within=7.0)
    assert told == [7.0]


def test_batches_are_cut_to_what_the_sink_wants():
    """No write exceeds the sink's limits in events or bytes, and the order is kept."""
    bench = Bench()
    bench.sender.max_batch_events = 4
    bench.sender.max_batch_bytes = 30
    batch = records(9, size=10)
    bench.send(batch)
    assert [len(write) for write in bench.sink.writes] == [3, 3, 3]
    assert bench.sink.delivered == batch


def test_a_configured_batch_size_wins_over_the_sinks():
    """A configured max_batch_events replaces the sink's own."""
    bench = Bench(max_batch_events=2)
    bench.send(records(5))
    assert [len(write) for write in bench.sink.writes] == [2, 2, 1]


def test_too_large_halves_until_it_fits():
    """A batch that is too large is halved until it fits, and nothing is rejected."""
    bench = Bench(*always(too_large_over(3)))
    batch = records(10)
    sent = bench.send(batch)
    assert sent.delivered == batch
    assert not sent.rejected
    assert bench.waits == []


def test_a_single_record_that_is_too_large_is_rejected():
    """A record that is refused on its own is rejected with the sink's reason."""
    bench = Bench(*always(too_large_over(0)))
    batch = records(3)
    sent = bench.send(batch)
    assert [rejection.record for rejection in sent.rejected] == batch
    assert {rejection.reason for rejection in sent.rejected} == {"too_large"}
    assert not sent.kept


def test_one_poisoned_record_takes_no_neighbour_with_it():
    """Halving finds the one bad record among a thousand; all others arrive in order."""
    batch = records(1_000)
    bad = batch[617]
    bench = Bench(*always(refused_for([bad])))
    sent = bench.send(batch)
    assert sent.delivered == [record for record in batch if record is not bad]
    assert [(r.record, r.reason, r.detail) for r in sent.rejected] == [(bad, "invalid", "why")]
    assert len(bench.sink.writes) <= 22


@given(bad=st.sets(st.integers(0, 63)))
def test_any_poisoned_records_are_found(bad):
    """Whichever records are bad, exactly those are rejected."""
    batch = records(64)
    bench = Bench(*always(refused_for([batch[n] for n in bad])))
    sent = bench.send(batch)
    assert [rejection.record for rejection in sent.rejected] == [batch[n] for n in sorted(bad)]
    assert len(sent.delivered) == 64 - len(bad)


def test_records_that_the_sink_names_are_rejected_alone():
    """If the sink names the bad records, no batch is halved."""
    batch = records(5)
    bench = Bench(named(batch[1:3]))
    sent = bench.send(batch)
    assert sent.delivered == [batch[0], batch[3], batch[4]]
    assert len(sent.rejected) == 2
    assert len(bench.sink.writes) == 1


def test_after_a_refusal_the_rest_of_a_lane_is_not_tried():
    """Batches behind a kept one are not tried, so that a series stays in order."""
    bench = Bench(away, max_batch_events=2)
    batch = records(6)
    sent = bench.attempt(batch)
    assert sent.kept == batch
    assert len(bench.sink.writes) == 1


def test_an_outage_in_the_middle_of_halving_keeps_the_order():
    """If the sink goes away during halving, the undelivered records are kept in order."""
    batch = records(8)
    bench = Bench(too_large_over(2), too_large_over(2), WriteResult(delivered=batch[:2]), away)
    sent = bench.attempt(batch)
    assert sent.delivered == batch[:2]
    assert sent.kept == batch[2:]


def test_a_refused_lane_does_not_hold_up_the_others():
    """Lanes are written separately, so one that is refused does not block another."""
    batch = [*records(2, lane="logs"), *records(2, lane="spans", start=2)]
    bench = Bench(away)
    sent = bench.attempt(batch)
    assert (sent.delivered, sent.kept) == (batch[2:], batch[:2])


def test_a_write_holds_one_lane():
    """A write never mixes records of several lanes."""
    batch = [record for n in range(3) for record in (*records(1, lane="a"), *records(1, lane="b"))]
    bench = Bench()
    bench.attempt(batch)
    assert [{record.lane for record in write} for write in bench.sink.writes] == [{"a"}, {"b"}]


def test_a_sink_that_raises_keeps_its_records(caplog):
    """A sink that raises costs no record; it is one log line without the exception's text."""

    def explode(batch):
        raise RuntimeError("token=secret")

    bench = Bench(explode, explode)
    sent = bench.send(records(2))
    assert len(sent.delivered) == 2
    assert bench.counters.snapshot().write_errors == 2
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"sink recording: 2 events were {KEPT}: the sink raised RuntimeError",
        "sink recording: memory takes events again",
    ]


def test_an_outage_is_one_log_line_that_says_why(caplog):
    """The sink's reason for keeping records is logged once for each kind of error."""
    away = WriteResult(kept=records(2), error="no server answers", error_type="refused")
    slow = WriteResult(kept=records(2), error="no answer in time", error_type="timeout")
    bench = Bench(away, away, slow)
    bench.send(records(2))
    assert [record.getMessage() for record in caplog.records] == [
        f"sink recording: 2 events were {KEPT}: no server answers",
        f"sink recording: 2 events were {KEPT}: no answer in time",
        "sink recording: memory takes events again",
    ]


def test_the_end_of_an_outage_is_told_although_one_ended_just_before(caplog):
    """The end of a second outage within a minute is logged with the first batch after that minute.

    Otherwise the last line of the log would say that nothing is taken.
    """
    bench = Bench(away, deliver, away, deliver, deliver, max_retries=0)
    for seconds in (0, 10, 50, 4, 60):
        bench.clock.advance(seconds)
        bench.send(records(1))
    ends = [r.getMessage().endswith("takes events again") for r in caplog.records]
    assert ends == [False, True, False, True]


def test_what_is_taken_in_part_is_no_end_of_an_outage(caplog):
    """A batch that is taken only in part does not end an outage.

    Kafka may confirm some records each time.
    """

    def some(batch):
        return WriteResult(delivered=batch[:1], kept=batch[1:], error="slow", error_type="slow")

    bench = Bench(away, some, some, max_retries=0)
    for _ in range(3):
        bench.send(records(2))
    assert not [r for r in caplog.records if "again" in r.getMessage().rpartition(":")[2]]


def test_the_end_of_an_outage_is_a_line_for_each_lane(caplog):
    """The end of a lane's outage is logged once, and only when that bucket or topic accepts."""
    gone = Record(b"{}", lane="gone"), Record(b"{}", lane="there")
    refused = WriteResult(kept=[gone[0]], error="there is none", error_type="404")
    bench = Bench(refused, max_retries=0)
    assert len(bench.send(gone).delivered) == 1
    messages = [f"sink recording: 1 event was {KEPT}: there is none"]
    assert [record.getMessage() for record in caplog.records] == messages
    for _ in range(2):
        assert len(bench.send(gone).delivered) == 2
    messages.append("sink recording: memory takes events for 'gone' again")
    assert [record.getMessage() for record in caplog.records] == messages


def test_a_sink_that_does_not_answer_for_every_record_costs_none():
    """If a sink answers for only some records, the whole batch is kept and none is lost."""
    bench = Bench(lambda batch: WriteResult(delivered=batch[:1]))
    sent = bench.attempt(records(3))
    assert (sent.kept, sent.delivered) == (records(3), [])
    health = bench.counters.snapshot()
    assert (health.write_errors, health.events_written) == (1, 0)
    assert health.last_error == "the sink answered for 1 of 3 records"


@pytest.mark.parametrize("kept", [[], [0], [1, 3], [0, 1, 2, 3]])
def test_outcomes_add_up(kept):
    """Delivered and kept records together are what was sent, also after partial answers."""
    batch = records(4)
    stays = [batch[n] for n in kept]
    result = WriteResult(
        delivered=[record for record in batch if record not in stays],
        kept=stays,
        error="half" if stays else "",
    )
    sent = Bench(result).attempt(batch)
    assert sent.kept == stays
    assert len(sent.delivered) + len(sent.kept) == 4


def test_records_that_are_refused_one_after_the_other_cost_no_retry():
    """Rejections one at a time cost no retry and no wait.

    InfluxDB names one type conflict at a time, and has not taken what comes after it.
    """
    batch = records(8)
    bad = batch[1::2]

    def name_first(written):
        found = [record for record in written if record in bad][:1]
        if not found:
            return WriteResult(delivered=written)
        rest = [record for record in written if record not in found]
        rejected = [Rejection(record, "field_type_conflict") for record in found]
        return WriteResult(rejected=rejected, kept=rest, error="422", error_type="422")

    bench = Bench(*always(name_first), max_retries=0)
    sent = bench.send(batch)
    assert [rejection.record for rejection in sent.rejected] == bad
    assert (sent.delivered, sent.kept) == (batch[::2], [])
    assert bench.waits == []


def test_an_abandoned_write_is_the_last_one_and_counts_for_nothing():
    """After an abandoned write nothing more is sent, and its records are not counted as written.

    They were counted when the write was given up.
    """
    batch = records(6)

    def late(written):
        bench.sender.abandon()
        return WriteResult(delivered=written)

    bench = Bench(late, max_batch_events=2)
    sent = bench.attempt(batch)
    assert (sent.delivered, sent.kept) == ([], batch)
    assert len(bench.sink.writes) == 1
    assert bench.counters.snapshot().events_written == 0

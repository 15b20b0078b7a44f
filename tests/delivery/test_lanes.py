"""What the drain sends next, decided without threads."""

import itertools
import logging
import math
import random

import pytest

from otel_cbtop_exporter.config import RetryConfig
from otel_cbtop_exporter.delivery.lanes import Lanes
from otel_cbtop_exporter.delivery.sender import Sender
from otel_cbtop_exporter.delivery.spool import Spool, SpoolError
from otel_cbtop_exporter.health import HealthCounters
from otel_cbtop_exporter.own_log import RateLimitedLog
from otel_cbtop_exporter.sinks.base import Rejection, WriteResult
from otel_cbtop_exporter.testing import FakeClock, RecordingSink
from tests.delivery.records import away, broken, broken_by, busy, records, refused_for


class Bench:
    """Lanes over spools in memory, with a sink that gives the answers it was told to."""

    def __init__(self, *answers, spools=1, max_batch_events=1_000):
        self.clock = FakeClock()
        self.sink = RecordingSink(*answers)
        self.spools = [Spool() for _ in range(spools)]
        self.rejections = []
        self.adoptions = 0
        self.dead = []
        self.counters = HealthCounters()
        sender = Sender(
            self.sink,
            counters=self.counters,
            log=RateLimitedLog(logging.getLogger("otel_cbtop_exporter"), self.clock.monotonic),
            retry=RetryConfig(),
            max_batch_events=max_batch_events,
            max_batch_bytes=None,
            clock=self.clock,
            jitter=lambda: 0.5,
            wait=None,  # with lanes the sender never waits
            spooled=True,
        )
        self.lanes = Lanes(
            spools=lambda: self.spools,
            adopt=self._adopt,
            sender=sender,
            retry=RetryConfig(),
            clock=self.clock,
            jitter=lambda: 0.5,
            write_timeout_seconds=10.0,
            reject=lambda rejections, _why: self.rejections.extend(rejections),
        )

    def _adopt(self):
        self.adoptions += 1
        adopted, self.dead = self.dead[:1], self.dead[1:]
        self.spools[:0] = adopted
        return bool(adopted)

    def append(self, batch, spool=0):
        self.spools[spool].append(batch)

    def step(self):
        return self.lanes.step()

    def run(self, steps=1_000):
        """Step until nothing is left, advancing the clock through every backoff."""
        for _ in range(steps):
            step = self.step()
            if step.wait_seconds is None:
                return
            self.clock.advance(step.wait_seconds)

    @property
    def waiting(self):
        return sum(spool.stats().events_spooled for spool in self.spools)


@pytest.fixture
def make_bench():
    """Build benches, and close their spools at the end."""
    made = []

    def make(*answers, **options):
        made.append(Bench(*answers, **options))
        return made[-1]

    yield make
    for bench in made:
        for spool in bench.spools:
            spool.close()


def deliver(batch):
    return WriteResult(delivered=batch)


def by_lane(**answers):
    """Answer each lane in its own way; lanes without an answer are delivered."""

    def answer(batch):
        return answers.get(batch[0].lane, lambda b: WriteResult(delivered=b))(batch)

    return itertools.repeat(answer, 10_000)


def test_nothing_to_do_asks_for_no_wait(make_bench):
    """With empty spools a step reports that nothing waits, and writes nothing."""
    bench = make_bench()
    assert bench.step().wait_seconds is None
    assert bench.sink.writes == []


def test_oldest_first(make_bench):
    """Records of a lane arrive in the order in which they were appended."""
    bench = make_bench()
    for start in range(0, 50, 5):
        bench.append(records(5, start=start))
    bench.run()
    assert bench.sink.delivered == records(50)
    assert bench.waiting == 0


def test_several_rows_go_in_one_request(make_bench):
    """A backlog is sent in batches of the configured size, not one row at a time."""
    bench = make_bench(max_batch_events=20)
    for start in range(0, 50, 5):
        bench.append(records(5, start=start))
    bench.run()
    assert [len(write) for write in bench.sink.writes] == [20, 20, 10]


def test_adopted_spools_are_drained_first(make_bench):
    """Spools taken over from a dead process are drained before our own."""
    bench = make_bench(spools=2)
    bench.append(records(2, start=10), spool=1)
    bench.append(records(2), spool=0)
    bench.run()
    assert bench.sink.delivered == [*records(2), *records(2, start=10)]


def test_a_refused_batch_waits_and_stays_first(make_bench):
    """Kept records are tried again after a wait, before any that came later."""
    bench = make_bench(away)
    bench.append(records(2))
    bench.step()
    bench.append(records(2, start=2))
    step = bench.step()
    assert step.wait_seconds == pytest.approx(0.05)
    bench.run()
    assert bench.sink.delivered == records(4)


def test_waits_grow_without_an_end(make_bench):
    """A refused lane's waits grow up to the maximum, and its retries never end."""
    bench = make_bench(*itertools.repeat(away, 20))
    bench.append(records(1))
    waits = []
    for _ in range(20):
        bench.step()
        waits.append(round(bench.step().wait_seconds, 3))
        bench.clock.advance(waits[-1])
    assert waits[:5] == [0.05, 0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == 5.0
    bench.run()
    assert bench.waiting == 0


def test_retry_after_holds_the_lane_back(make_bench):
    """A Retry-After that is longer than the lane's own backoff is the wait."""
    bench = make_bench(busy(30.0))
    bench.append(records(1))
    bench.step()
    assert bench.step().wait_seconds == 30.0


def test_after_a_refusal_one_small_batch_asks(make_bench):
    """The first try after a refusal sends only the oldest row.

    Then batches have their full size again.
    """
    bench = make_bench(away)
    for start in range(0, 50, 5):
        bench.append(records(5, start=start))
    bench.run()
    assert [len(write) for write in bench.sink.writes] == [50, 5, 45]


def test_a_refused_lane_backs_off_alone(make_bench):
    """A lane that is refused for ever does not delay the others."""
    bench = make_bench(*by_lane(logs=away))
    bench.append([*records(3, lane="logs"), *records(3, lane="spans")])
    for _ in range(4):
        bench.step()
    assert bench.sink.delivered == records(3, lane="spans")
    assert bench.step().wait_seconds == pytest.approx(0.05)


def test_hurry_tries_every_lane_at_once(make_bench):
    """`hurry`, called by a flush, ends the backoff of every lane."""
    bench = make_bench(busy(30.0))
    bench.append(records(1))
    bench.step()
    bench.lanes.hurry()
    assert bench.step().settled
    assert bench.waiting == 0


def test_what_is_rejected_is_told_and_leaves(make_bench):
    """A rejected record is reported and leaves the spool, and its neighbours arrive."""
    batch = records(100)
    bench = make_bench(*itertools.repeat(refused_for(batch[7:8]), 100))
    bench.append(batch)
    bench.run()
    assert [rejection.record for rejection in bench.rejections] == batch[7:8]
    assert len(bench.sink.delivered) == 99
    assert bench.waiting == 0


def test_a_partial_answer_keeps_the_rest_in_order(make_bench):
    """When a sink takes some records of a batch, only the others are tried again."""
    batch = records(4)
    bench = make_bench(
        WriteResult(delivered=batch[::2], kept=batch[1::2], error="x", error_type="x")
    )
    bench.append(batch)
    bench.run()
    assert bench.sink.delivered == [batch[0], batch[2], batch[1], batch[3]]


def test_a_record_that_breaks_the_server_is_found_while_others_pass(make_bench):
    """A record that alone gets a 500 again and again is rejected, and its neighbours arrive."""
    batch = records(300)
    bench = make_bench(*itertools.repeat(broken_by(batch[123:124]), 10_000))
    for start in range(0, 300, 50):
        bench.append(batch[start : start + 50])
    bench.run()
    assert [(r.record, r.reason) for r in bench.rejections] == [(batch[123], "server_error")]
    assert sorted(int(r.body) for r in bench.sink.delivered) == [n for n in range(300) if n != 123]
    assert bench.waiting == 0


def test_a_broken_server_costs_no_record(make_bench):
    """While nothing of a lane passes, no record is blamed, however long the server is broken."""
    batch = records(300)
    bench = make_bench(*itertools.repeat(broken, 200))
    for start in range(0, 300, 50):
        bench.append(batch[start : start + 50])
    bench.run()
    assert bench.rejections == []
    assert len(set(bench.sink.delivered)) == 300
    assert bench.waiting == 0


def test_a_restarting_server_is_not_suspicious(make_bench):
    """A 503 is about the server and not about a record, so the batch stays whole and in order."""

    def unavailable(batch):
        return WriteResult(kept=batch, error="503", error_type="503")

    bench = make_bench(*itertools.repeat(unavailable, 9))
    bench.append(records(8))
    bench.run()
    assert {len(write) for write in bench.sink.writes} == {8}


@pytest.mark.parametrize("every", [20, 40])
def test_breakers_here_and_there_do_not_stop_a_lane(make_bench, every):
    """Records that break the server are found even if every large piece of a batch holds one.

    Nothing passes then until the pieces are small.
    """
    batch = records(440)
    bad = batch[every // 2 :: every]
    bench = make_bench(*itertools.repeat(broken_by(bad), 100_000))
    bench.append(batch)
    bench.run()
    assert {rejection.record for rejection in bench.rejections} == set(bad)
    assert len(bench.sink.delivered) == len(batch) - len(bad)
    assert len(bench.sink.writes) < 1_500


def test_equal_records_are_not_blamed_sooner(make_bench):
    """Each search counts once against a record, however many equal records it holds."""
    one = records(1)
    tries = itertools.count()

    def answer(written):
        return (broken if one[0] in written and next(tries) < 12 else deliver)(written)

    bench = make_bench(*itertools.repeat(answer, 1_000))
    bench.append([*one * 3, *records(30, start=5)])
    bench.run()
    assert bench.rejections == []
    assert len(bench.sink.delivered) == 33


def test_a_refused_lane_is_tried_where_somebody_flushes_all_the_time(make_bench):
    """Constant flushes do not starve a refused lane.

    A flush puts the other lanes first only once per try of a refused one.
    """
    refusals = iter([away])

    def answer(written):
        bench.clock.advance(0.2)
        if written[0].lane == "b":
            return next(refusals, deliver)(written)
        return deliver(written)

    bench = make_bench(*itertools.repeat(answer, 1_000))
    bench.append(records(1, lane="b"))
    for number in range(200):
        bench.append(records(1, start=number, lane="a"))
        bench.lanes.hurry()
        bench.step()
    assert [record for record in bench.sink.delivered if record.lane == "b"]


def test_a_server_that_takes_one_and_refuses_the_next_costs_no_record(make_bench):
    """A server that is short of resources for a while costs no record.

    Small batches pass sometimes, and any record may be refused.
    """
    short = random.Random(3)
    tries = itertools.count()

    def answer(written):
        if next(tries) < 300 and short.random() < 0.6 + len(written) / 500:
            return broken(written)
        return WriteResult(delivered=written)

    bench = make_bench(*itertools.repeat(answer, 100_000))
    for start in range(0, 600, 50):
        bench.append(records(50, start=start))
    bench.run()
    assert bench.rejections == []
    assert len(set(bench.sink.delivered)) == 600


def test_a_record_that_broke_the_server_for_a_while_arrives(make_bench):
    """A record that breaks the server alone is tried again before it is blamed."""
    batch = records(2)
    tries = itertools.count()

    def flaky(written):
        if batch[0] in written and next(tries) < 4:
            return broken(written)
        return WriteResult(delivered=written)

    bench = make_bench(*itertools.repeat(flaky, 100))
    bench.append(batch)
    bench.run()
    assert bench.rejections == []
    assert sorted(record.body for record in bench.sink.delivered) == [b"0", b"1"]


def test_an_abandoned_write_settles_nothing(make_bench):
    """The late answer of an abandoned write settles nothing, because the spool is being closed."""

    def hang(batch):
        bench.lanes.abandon(math.inf)
        return WriteResult(delivered=batch)

    bench = make_bench(hang)
    bench.append(records(2))
    bench.step()
    assert (bench.sink.delivered, bench.waiting) == (records(2), 2)


def test_what_was_answered_before_an_abandoned_write_is_settled(make_bench):
    """Answers received before a write was abandoned are settled.

    Otherwise those records would count as both written and lost, or be sent again by the next
    process.
    """
    batch = records(6)

    def hang(written):
        bench.lanes.abandon(math.inf)
        return WriteResult(delivered=written)

    def name_one(written):
        return WriteResult(
            delivered=written[1:], rejected=[Rejection(written[0], "invalid")], error_type="422"
        )

    bench = make_bench(None, name_one, hang, max_batch_events=2)
    bench.append(batch)  # one row, claimed whole
    bench.step()
    assert bench.counters.snapshot().events_written == 3
    assert [rejection.record for rejection in bench.rejections] == batch[2:3]
    assert bench.waiting == 2


def test_a_slow_server_s_refusals_are_searched_through(make_bench):
    """Each write of a split batch has its own timeout.

    Otherwise a slow server's refusals would never be searched through.
    """
    batch = records(64)
    answer = refused_for(batch[:1], "too_large")

    def slow(written):
        bench.clock.advance(4.0)
        return answer(written)

    bench = make_bench(*itertools.repeat(slow, 100))
    bench.append(batch)
    bench.run()
    assert [rejection.record for rejection in bench.rejections] == batch[:1]
    assert bench.sink.delivered == batch[1:]


def test_lanes_whose_tries_take_longer_than_their_waits_leave_the_others_their_turn(make_bench):
    """Several slow failing lanes do not starve a good one.

    By the time one has failed, the backoff of another is over, and so on for ever.
    """
    missing = {f"missing{number}": away for number in range(5)}

    def slow(written):
        lane = written[0].lane
        bench.clock.advance(1.0 if lane in missing else 0.0)
        return missing.get(lane, lambda batch: WriteResult(delivered=batch))(written)

    bench = make_bench(*itertools.repeat(slow, 10_000))
    for name in missing:
        bench.append(records(1, lane=name))
    for number in range(20):
        bench.append(records(1, lane="good", start=number))
        for _ in range(3):
            bench.clock.advance(min(bench.step().wait_seconds or 0.0, 0.1))
    assert len(bench.sink.delivered) >= 18


def test_a_lane_of_refused_records_leaves_the_others_their_turn(make_bench):
    """Splitting a lane of bad records ends with the lane's turn, and resumes later."""
    bad, good = records(500, lane="a"), records(1, lane="b", start=1_000)
    answer = refused_for(bad)

    def slow(written):
        bench.clock.advance(1.0)
        return answer(written)

    bench = make_bench(*itertools.repeat(slow, 10_000))
    began = bench.clock.monotonic()
    bench.append(bad)
    bench.append(good)
    while not bench.sink.delivered:
        bench.clock.advance(bench.step().wait_seconds or 0.0)
    assert bench.clock.monotonic() - began < 40.0
    bench.run(10_000)
    assert [rejection.record for rejection in bench.rejections] == bad


def test_once_abandoned_no_spool_is_touched(make_bench):
    """Once abandoned, lanes adopt nothing and open no spool file.

    By then it may belong to another process.
    """
    bench = make_bench()
    bench.append(records(2))
    bench.lanes.abandon(math.inf)
    assert bench.step().wait_seconds is None
    assert (bench.sink.writes, bench.adoptions) == ([], 0)


def test_a_spool_that_cannot_be_read_does_not_hold_up_the_others(make_bench, tmp_path):
    """The other spools are emptied first; from then on each step raises the SpoolError."""
    bench = make_bench(spools=2)
    unreadable = Spool(tmp_path / "spool.db")
    unreadable.append(records(1))
    unreadable._store.database.after_fork_in_child()  # as in a forked child: every call raises
    bench.spools.insert(0, unreadable)
    for start in range(0, 6, 2):
        bench.append(records(2, start=start), spool=1 + start // 4)
    for _ in range(2):
        bench.step()
    assert bench.sink.delivered == records(6)
    for _ in range(2):
        with pytest.raises(SpoolError):
            bench.step()


def test_a_lane_that_is_empty_is_forgotten(make_bench):
    """Empty lanes are forgotten, also one that was refused.

    There may be one for each value of a tag.
    """
    bench = make_bench(away)
    for name in ("first", "second", "third"):
        bench.append(records(2, lane=name))
    bench.step()
    assert len(bench.lanes._lanes) == 3
    bench.step()
    bench.step()
    assert len(bench.lanes._lanes) == 1
    bench.run()
    assert bench.waiting == 0
    assert bench.lanes._lanes == {}


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0, 3.0])
def test_a_lane_that_was_refused_once_is_tried_while_others_have_work_all_the_time(
    make_bench, seconds
):
    """A refused lane gets its share of the time, however long a request takes."""
    refusals = iter([away])

    def answer(written):
        bench.clock.advance(seconds)
        if written[0].lane == "b":
            return next(refusals, lambda batch: WriteResult(delivered=batch))(written)
        return WriteResult(delivered=written)

    bench = make_bench(*itertools.repeat(answer, 1_000))
    bench.append(records(1, lane="b"))
    for number in range(50):
        bench.append(records(1, start=number, lane="a"))
        bench.step()
        bench.clock.advance(0.1)
    assert [record for record in bench.sink.delivered if record.lane == "b"]


def test_a_lane_that_hangs_leaves_the_others_half_of_the_time(make_bench):
    """Hanging lanes leave the others half of the time, even if they are in an earlier spool."""

    def answer(written):
        hangs = written[0].lane.startswith("hangs")
        bench.clock.advance(10.0 if hangs else 0.5)
        return away(written) if hangs else WriteResult(delivered=written)

    bench = make_bench(*itertools.repeat(answer, 1_000))
    for name in ("hangs1", "hangs2", "hangs3"):
        bench.append(records(1, lane=name))
    bench.spools.append(Spool())
    writes = bench.sink.writes
    began = bench.clock.monotonic()
    while bench.clock.monotonic() - began < 400.0:
        bench.append(records(1, lane="good"), spool=1)
        bench.step()
    good = sum(written[0].lane == "good" for written in writes)
    assert 350 < good < 450
    assert len(writes) - good > 10


def test_at_the_end_what_is_taken_as_a_rule_is_tried_first(make_bench):
    """A flush first tries lanes that are usually accepted.

    There may be no time for a refused one.
    """
    bench = make_bench(*by_lane(refused=away))
    bench.append(records(1, lane="refused"))
    bench.step()
    bench.append(records(1, lane="good"))
    bench.lanes.hurry()
    bench.step()
    assert bench.sink.writes[-1][0].lane == "good"


def test_a_lane_whose_records_were_evicted_is_forgotten(make_bench):
    """A refused lane whose records were evicted is forgotten."""
    bench = make_bench(away)
    bench.append(records(2, lane="full"))
    bench.step()
    bench.spools[0].max_bytes = 0
    bench.spools[0].evict()
    assert bench.step().wait_seconds is None
    assert bench.lanes._lanes == {}


def test_dead_neighbours_are_looked_for_now_and_then(make_bench):
    """Adoption is tried at the first step, and then every two seconds while there is work."""
    bench = make_bench()
    bench.step()
    bench.step()
    assert bench.adoptions == 1
    bench.clock.advance(2.0)
    bench.step()
    assert bench.adoptions == 2


def test_all_the_dead_are_taken_over_before_it_rests(make_bench):
    """All spools of dead processes are taken over, a few at a time, before the drain rests.

    The remaining ones do not wait for the next record.
    """
    bench = make_bench()
    bench.append(records(1))
    for _ in range(3):
        bench.dead.append(Spool())
        bench.dead[-1].append(records(2))
    bench.run()
    assert bench.adoptions == 4
    assert len(bench.sink.delivered) == 7


class Unreadable(Spool):
    """A spool on a bad disk sector: it lists its lanes, but no record can be read."""

    def claim(self, lane, max_events, max_bytes):
        raise SpoolError("disk I/O error")


def test_a_spool_that_cannot_be_read_holds_up_no_other(make_bench):
    """The other spools are emptied before the read error is raised."""
    bench = make_bench()
    bench.append(records(2))
    bench.spools.insert(0, Unreadable())
    bench.append(records(1), spool=0)
    bench.step()
    assert len(bench.sink.delivered) == 2
    with pytest.raises(SpoolError, match="disk I/O error"):
        bench.step()


def test_a_batch_of_nothing_but_breakers_is_found_among_small_batches(make_bench):
    """A search claims the following row too, even if the batch size is smaller than a row.

    A row of nothing but breakers is thus compared with records that pass.
    """
    bad, good = records(16), records(16, start=100)
    bench = make_bench(*itertools.repeat(broken_by(bad), 1_000), max_batch_events=4)
    bench.append(bad)
    bench.append(good)
    bench.run()
    assert {rejection.record for rejection in bench.rejections} == set(bad)
    assert set(bench.sink.delivered) == set(good)


def test_a_search_ends_in_its_time(make_bench):
    """All writes of a search together keep to the step's deadline, and what is left is kept."""
    batch = records(64)
    answer = broken_by(batch[:1])

    def slow(written):
        bench.clock.advance(1.0)
        return answer(written)

    bench = make_bench(*itertools.repeat(slow, 100))
    bench.append(batch)
    for _ in range(3):
        bench.step()
        bench.clock.advance(60.0)
    deadline = bench.clock.monotonic() + 2.5
    writes = len(bench.sink.writes)
    bench.lanes.step(deadline)
    assert bench.clock.monotonic() - deadline < 1.0
    assert len(bench.sink.writes) == writes + 3
    bench.run()
    assert [rejection.record for rejection in bench.rejections] == batch[:1]
    assert set(bench.sink.delivered) == set(batch[1:])


def test_what_was_rejected_is_told_once_at_the_end(make_bench):
    """`abandon` does not report again what a settled step has rejected."""
    batch = records(3)
    bench = make_bench(*itertools.repeat(refused_for(batch[:1]), 20))
    bench.append(batch)
    bench.run()
    bench.lanes.abandon(math.inf)
    assert [rejection.record for rejection in bench.rejections] == batch[:1]


def test_what_came_back_to_disk_behind_a_look_is_looked_for_again(make_bench):
    """A step that finds no spool looks again if records have just moved back to disk."""
    bench = make_bench()
    bench.append(records(2))
    spools, looks = bench.spools, itertools.count()
    bench.lanes._spools = lambda: spools if next(looks) else []
    step = bench.step()
    assert step.wait_seconds is not None
    bench.run()
    assert bench.sink.delivered == records(2)


def test_rejections_are_progress(make_bench):
    """Rejected records count as settled, because they have left the spool."""
    batch = records(2)
    bench = make_bench(*itertools.repeat(refused_for(batch), 10))
    bench.append(batch)
    assert bench.step().settled


def test_a_spool_that_cannot_be_read_for_once_forgets_no_backoff(make_bench):
    """A read error does not reset a lane's backoff, or its destination would be hammered."""

    class Shy(Spool):
        fails = False

        def lanes(self):
            if self.fails:
                raise SpoolError("disk I/O error")
            return super().lanes()

    bench = make_bench(*itertools.repeat(busy(60.0), 5))
    shy = Shy()
    bench.spools.append(shy)
    bench.append(records(1), spool=1)
    bench.step()
    shy.fails = True
    with pytest.raises(SpoolError):
        bench.step()
    shy.fails = False
    assert bench.step().wait_seconds == pytest.approx(60.0)
    assert len(bench.sink.writes) == 1


def test_each_flush_tries_first_what_is_taken_as_a_rule(make_bench):
    """Every flush, not only the first, tries accepted lanes first.

    Otherwise the end of a process would wait for a lane that hangs.
    """

    def answer(batch):
        if batch[0].lane == "refused":
            return away(batch)
        bench.clock.advance(30.0)  # more time than lanes that go first at a flush get
        return deliver(batch)

    bench = make_bench(*itertools.repeat(answer, 100))
    bench.append(records(1, lane="refused"))
    bench.step()
    for _ in range(3):
        bench.append(records(1, lane="good"))
        bench.lanes.hurry()
        bench.step()
        assert bench.sink.writes[-1][0].lane == "good"
        bench.step()
        assert bench.sink.writes[-1][0].lane == "refused"

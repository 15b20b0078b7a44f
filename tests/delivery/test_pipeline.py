"""Pipelines: accepting batches, sharing, shutdown, and all the counters."""

import itertools
import threading
import time

import msgspec
import pytest

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery import pipeline as pipeline_module
from otel_cbtop_exporter.delivery.pipeline import Pipeline, acquire
from otel_cbtop_exporter.events import event_from_sample
from otel_cbtop_exporter.sinks.base import Encoded, Rejection, WriteResult
from otel_cbtop_exporter.testing import FakeClock, RecordingSink
from tests.delivery.records import away, busy

QUICK = {"initial_delay_ms": 1, "max_delay_ms": 5}
LONG = 20.0


def events(count, start=0):
    return [
        event_from_sample("m", start + n, {"host": "a"}, timestamp_ns=n + 1) for n in range(count)
    ]


def values(sink):
    return [event["fields"]["value"] for event in sink.events]


@pytest.fixture
def make(tmp_path):
    """Build pipelines, and release them at the end."""
    made = []

    def build(sink, *, clock=None, **options):
        options.setdefault("retry", QUICK)
        extra = {"clock": clock, "jitter": lambda: 0.5} if clock else {}
        made.append(Pipeline(sink, ExporterConfig(**options), **extra))
        return made[-1]

    yield build
    for one in made:
        if not one.closed:
            one.release(0.0)


def test_a_local_sink_is_written_on_the_callers_thread(make):
    """Without a spool path, a local sink has the records when `submit` returns."""
    sink = RecordingSink(local=True)
    assert make(sink).submit(events(3), 5.0)
    assert values(sink) == [0, 1, 2]


def test_a_remote_sink_never_holds_the_caller(make):
    """A batch for a remote sink that hangs is accepted at once and waits in the spool."""
    release = threading.Event()

    def hang(batch):
        release.wait(LONG)
        return WriteResult(delivered=batch)

    pipeline = make(RecordingSink(hang))
    assert pipeline.submit(events(3), 5.0)
    assert pipeline.health().events_spooled == 3
    release.set()
    assert pipeline.force_flush(LONG)
    assert pipeline.health().events_written == 3


def test_direct_delivery_answers_the_truth(make):
    """With delivery=direct, `submit` returns False for an undelivered batch, and counts it."""
    clock = FakeClock()
    pipeline = make(RecordingSink(*[away] * 4), clock=clock, delivery="direct", retry={})
    assert not pipeline.submit(events(3), 60.0)
    assert pipeline.submit(events(2), 60.0)
    health = pipeline.health()
    assert health.events_dropped == {"ConnectionRefusedError": 3}
    assert (health.events_written, health.events_spooled) == (2, 0)


def test_a_direct_batch_that_times_out_is_counted_so(make):
    """With no time left nothing is written, and the events are counted under `timeout`."""
    pipeline = make(RecordingSink(), clock=FakeClock(), delivery="direct")
    assert not pipeline.submit(events(3), 0.0)
    assert pipeline.health().events_dropped == {"timeout": 3}


def test_the_next_batch_tells_what_was_lost_before(make, caplog):
    """The next batch logs losses that rate limiting held back.

    If the losses stopped, they would never be logged otherwise.
    """
    clock = FakeClock()

    def refuse(batch):
        return WriteResult(rejected=[Rejection(record, "invalid") for record in batch])

    sink = RecordingSink(*[refuse] * 3, local=True)
    pipeline = make(sink, clock=clock)
    for _ in range(3):
        pipeline.submit(events(2), 5)
    clock.advance(60)
    assert len(caplog.records) == 1
    pipeline.submit(events(1), 5)
    assert "the last of 4 more events" in caplog.records[1].getMessage()


def test_a_local_sink_with_a_spool_path_is_spooled(make, tmp_path):
    """With a spool path, a local sink's records survive a write that fails."""
    pipeline = make(RecordingSink(away, local=True), spool={"path": str(tmp_path / "spool")})
    assert pipeline.submit(events(3), 5.0)
    assert pipeline.force_flush(LONG)
    assert pipeline.health().events_written == 3


def test_events_are_encoded_once(make):
    """A batch is encoded once, however often it is tried."""
    sink = RecordingSink(away, away, away)
    calls = []
    encode = sink.encode
    sink.encode = lambda batch: calls.append(len(batch)) or encode(batch)
    pipeline = make(sink)
    pipeline.submit(events(3), 5.0)
    assert pipeline.force_flush(LONG)
    assert calls == [3]


def test_what_cannot_be_encoded_is_counted_and_takes_nothing_along(make, caplog):
    """Events that a sink cannot encode are rejected and counted; the others arrive."""
    sink = RecordingSink(local=True)
    encode = sink.encode

    def refuse_first(batch):
        records = encode(batch).records
        rejected = [Rejection(records[0], "no_field", "secret")]
        return Encoded(records=records[1:], rejected=rejected, why_rejected="'m' has no field")

    sink.encode = refuse_first
    pipeline = make(sink)
    assert pipeline.submit(events(3), 5.0)
    assert not pipeline.submit(events(1), 5.0)
    health = pipeline.health()
    assert (health.events_rejected, health.events_written) == (2, 2)
    assert "secret" not in caplog.text
    assert "1 event was rejected: no_field; 'm' has no field" in caplog.text


def test_an_event_that_cannot_be_encoded_spares_its_neighbours(make):
    """An event whose encoding raises is dropped alone and counted under the exception.

    `submit` returns False then.
    """

    def lane(event):
        if event.measurement == "poison":
            raise NotImplementedError
        return ""

    sink = RecordingSink(local=True, lane=lane)
    pipeline = make(sink)
    poison = msgspec.structs.replace(*events(1), measurement="poison")
    first, last = events(2)
    assert not pipeline.submit([first, poison, last], 5.0)
    health = pipeline.health()
    assert (health.events_written, health.events_dropped) == (2, {"NotImplementedError": 1})


def test_a_spool_that_raises_does_not_reach_the_application(make, tmp_path):
    """Any exception of the spool is contained.

    Its events are counted under the exception's name.
    """
    pipeline = make(RecordingSink(), spool={"path": str(tmp_path)})

    def explode(records):
        raise LookupError

    pipeline._backlog._store.append = explode
    assert not pipeline.submit(events(3), 5.0)
    assert pipeline.health().events_dropped == {"LookupError": 3}


def test_an_encoder_that_raises_does_not_reach_the_application(make):
    """An exception in `encode` is contained; its events are counted under the exception's name."""
    sink = RecordingSink()

    def explode(batch):
        raise LookupError

    sink.encode = explode
    pipeline = make(sink)
    assert not pipeline.submit(events(3), 5.0)
    assert pipeline.health().events_dropped == {"LookupError": 3}


def test_an_empty_batch_is_nothing(make):
    """Submitting an empty batch succeeds."""
    assert make(RecordingSink()).submit([], 5.0)


def test_rejected_records_are_kept_with_their_reason(make, tmp_path):
    """With a spool path, rejected records are written to the dead-letter file with their reason."""
    sink = RecordingSink(
        lambda batch: WriteResult(
            delivered=batch[1:], rejected=[Rejection(batch[0], "invalid", "type conflict")]
        )
    )
    pipeline = make(sink, spool={"path": str(tmp_path)})
    pipeline.submit(events(3), 5.0)
    assert pipeline.force_flush(LONG)
    letters = (tmp_path / "dead-letters.jsonl").read_text()
    assert '"reason":"invalid"' in letters
    assert '"detail":"type conflict"' in letters
    assert letters.count("\n") == 1


def test_no_thread_before_the_first_batch(make):
    """Making a pipeline starts no thread, so that servers may fork afterwards."""
    before = threading.active_count()
    make(RecordingSink())
    assert threading.active_count() == before


def test_counters_are_exact_under_threads(make):
    """When eight threads submit, every event is counted once, as written or as dropped."""
    sink = RecordingSink(*itertools.chain.from_iterable([[away, None, away]] * 100), local=True)
    sink.answers = [answer for answer in sink.answers if answer]
    pipeline = make(sink, retry={"max_retries": 0})
    threads = [
        threading.Thread(target=lambda: [pipeline.submit(events(5), 5.0) for _ in range(50)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    health = pipeline.health()
    assert health.events_written + sum(health.events_dropped.values()) == 8 * 50 * 5
    assert health.events_written == len(sink.delivered)


def test_equal_keys_share_one_pipeline():
    """Acquiring the same key twice returns the same pipeline and makes only one sink."""
    made = []

    def make_sink():
        made.append(RecordingSink())
        return made[-1]

    one = acquire("k", make_sink, ExporterConfig())
    two = acquire("k", make_sink, ExporterConfig())
    other = acquire("other", make_sink, ExporterConfig())
    assert one is two
    assert one is not other
    assert len(made) == 2
    for pipeline in (one, two, other):
        pipeline.release(1.0)


def test_the_last_holder_closes():
    """The last holder's release closes the sink once; a later holder gets a new pipeline."""
    sinks = [RecordingSink(local=True), RecordingSink(local=True)]
    left = iter(sinks)
    one = acquire("k", lambda: next(left), ExporterConfig())
    acquire("k", lambda: next(left), ExporterConfig())
    one.release(1.0)
    assert one.submit(events(1), 1.0)
    assert sinks[0].closes == 0
    one.release(1.0)
    assert sinks[0].closes == 1
    new = acquire("k", lambda: next(left), ExporterConfig())
    assert new is not one
    new.release(1.0)


def test_release_delivers_what_waits(make):
    """Shutdown first delivers everything that the sink takes."""
    sink = RecordingSink(away)
    pipeline = make(sink)
    for n in range(20):
        pipeline.submit(events(10, start=10 * n), 5.0)
    pipeline.release(LONG)
    assert values(sink) == list(range(200))
    assert sink.closes == 1


def test_after_the_shutdown_batches_are_refused_and_counted(make):
    """After the last release, `submit` returns False and counts the events under `shutdown`."""
    pipeline = make(RecordingSink())
    pipeline.release(1.0)
    assert not pipeline.submit(events(3), 5.0)
    assert pipeline.health().events_dropped == {"shutdown": 3}


def test_what_memory_could_not_deliver_is_counted_and_logged(make, caplog):
    """If the sink stays away, shutdown counts what a spool in memory held, and logs why."""
    pipeline = make(RecordingSink(*[busy(60.0)] * 100))
    pipeline.submit(events(7), 5.0)
    pipeline.release(LONG)
    assert pipeline.health().events_dropped == {"shutdown": 7}
    assert "7 events were dropped (shutdown): 429 Too Many Requests" in caplog.text


def test_what_is_on_disk_waits_for_the_next_process(make, tmp_path):
    """A shutdown with the sink away loses nothing of a spool on disk; the next process sends it."""
    first = make(RecordingSink(*[busy(60.0)] * 100), spool={"path": str(tmp_path)})
    first.submit(events(7), 5.0)
    first.release(LONG)
    assert first.health().events_dropped == {}
    assert first.health().events_spooled == 7
    sink = RecordingSink()
    second = make(sink, spool={"path": str(tmp_path)})
    second.submit(events(1, start=7), 5.0)
    assert second.force_flush(LONG)
    assert values(sink) == list(range(8))


def test_a_sink_that_hangs_does_not_hold_the_shutdown(make):
    """`release` ends in time even if a write hangs, whose thread closes the sink afterwards."""
    release, closed = threading.Event(), threading.Event()

    def hang(batch):
        release.wait(LONG)
        return WriteResult(kept=batch)

    class Sink(RecordingSink):
        def close(self, timeout_seconds):
            super().close(timeout_seconds)
            closed.set()

    sink = Sink(hang)
    pipeline = make(sink)
    pipeline.submit(events(1), 5.0)
    began = time.monotonic()
    pipeline.release(0.5)
    assert time.monotonic() - began < LONG / 2
    assert sink.closes == 0
    release.set()
    assert closed.wait(LONG)


def test_a_shutdown_without_time_gives_the_files_up_for_good(make, tmp_path):
    """After a shutdown without time, the abandoned thread takes no file back.

    The next holder finds them all.
    """
    for start in range(8):
        first = make(RecordingSink(*[busy(60.0)] * 100), spool={"path": str(tmp_path)})
        first.submit(events(1, start), 5.0)
        first.release(0.0)
    sink = RecordingSink()
    last = make(sink, spool={"path": str(tmp_path)})
    last.submit(events(1, 8), 5.0)
    assert last.force_flush(LONG)
    assert values(sink) == list(range(9))


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_batch_that_comes_while_the_pipeline_closes_is_counted_or_kept(make, tmp_path, place):
    """A batch submitted during close is counted as lost in memory, and kept on disk.

    The next holder finds it there, with no lock in its way.
    """
    entered, go = threading.Event(), threading.Event()

    def lane(_event):
        entered.set()
        assert go.wait(LONG)
        return ""

    spool = {"path": str(tmp_path)} if place == "disk" else {}
    first = make(RecordingSink(lane=lane), spool=spool)
    answers = []
    late = threading.Thread(target=lambda: answers.append(first.submit(events(2), 5.0)))
    late.start()
    assert entered.wait(LONG)
    first.release(1.0)
    go.set()
    late.join(LONG)
    assert answers == [False]
    sink = RecordingSink()
    second = make(sink, spool=spool)
    second.submit(events(1, 2), 5.0)
    assert second.force_flush(LONG)
    if place == "disk":
        assert values(sink) == [0, 1, 2]
    else:
        assert first.health().events_dropped == {"shutdown": 2}


def test_dead_backends_share_one_budget(make):
    """Pipelines whose backends are away share one shutdown budget of 3 s, and each gets a share."""
    sinks = [RecordingSink(*[away] * 100_000) for _ in range(3)]
    pipelines = [make(sink) for sink in sinks]
    pipeline_module._away_budget.renew()
    for pipeline in pipelines:
        pipeline.submit(events(1), 5.0)
    shares = []
    for pipeline in pipelines:
        shares.append(pipeline_module._away_budget.share(len(pipeline_module.open_pipelines()), 0))
        pipeline.release(60.0)
    assert all(share > 0.5 for share in shares)
    assert pipeline_module._away_budget.share(1, 0) < 0.5
    for pipeline in pipelines:
        assert pipeline.health().events_dropped == {"shutdown": 1}


@pytest.mark.parametrize("idle_sink", [RecordingSink(local=True), None])
def test_a_backend_that_is_slow_is_not_away(make, idle_sink):
    """A slow backend that answers every request is not treated as away.

    Each request takes longer than a share of the budget; idle pipelines have no share.
    """

    def slow(batch):
        time.sleep(0.6)  # a slow server; the process-wide budget is in real time
        return WriteResult(delivered=batch)

    idle = [make(idle_sink) for _ in range(8)] if idle_sink else []
    config = ExporterConfig(sink="none", max_batch_events=1)
    sink = RecordingSink(*[slow] * 10)
    holders = [pipeline_module.acquire("slow", lambda: sink, config) for _ in range(8)]
    pipeline_module._away_budget.renew()
    holders[0].submit(events(4), 5.0)
    for pipeline in holders:
        pipeline.release(30.0)
    assert len(sink.delivered) == 4
    for pipeline in idle:
        pipeline.release(1.0)


def test_the_first_of_several_holders_does_not_spend_what_the_others_wait_with():
    """The first of three holders does not use up the shutdown budget of the others.

    They share a pipeline, and the first one's topic is missing.
    """

    def answer(batch):
        return away(batch) if batch[0].lane == "missing" else WriteResult(delivered=batch)

    sink = RecordingSink(*[answer] * 100_000, lane=lambda event: event.tags["lane"])
    config = ExporterConfig(sink="none")
    holders = [pipeline_module.acquire("three holders", lambda: sink, config) for _ in range(3)]
    pipeline_module._away_budget.renew()
    waits = []
    for lane, pipeline in zip(("missing", "good", "good"), holders, strict=True):
        pipeline.submit([event_from_sample("m", 1, {"lane": lane})], 5.0)
        began = time.monotonic()
        pipeline.release(30.0)
        waits.append(time.monotonic() - began)
    assert sum(waits) < 3.0
    assert waits[0] < 1.5
    assert len(sink.delivered) == 2


def test_shutdown_ends_the_retries_of_a_direct_send(make):
    """Shutdown gives up a direct batch that waits for a retry on another thread."""
    pipeline = make(RecordingSink(*[busy(30.0)] * 10, local=True), retry={"max_retries": 9})
    results = []
    thread = threading.Thread(target=lambda: results.append(pipeline.submit(events(2), 60.0)))
    thread.start()
    deadline = time.monotonic() + LONG
    while not pipeline.health().write_errors:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    pipeline.release(1.0)
    thread.join(LONG)
    assert results == [False]
    assert pipeline.health().events_dropped == {"429": 2}


def test_a_direct_send_in_vain_makes_the_next_ones_short(make):
    """After a direct send has failed, the next ones are given little time until one arrives.

    A process that ends with ten batches left must not wait for ten timeouts.
    """
    clock = FakeClock()

    def hang(batch):
        clock.advance(9.0)
        return away(batch)

    sink = RecordingSink(hang, *[away] * 3, None, *[away] * 2, local=True)
    pipeline = make(sink, clock=clock, retry={"max_retries": 50, "initial_delay_ms": 500})
    taken = []
    for _ in range(4):
        began = clock.monotonic()
        pipeline.submit(events(1), 10.0)
        taken.append(clock.monotonic() - began)
    assert taken[0] >= 9.0
    assert max(taken[1:]) <= 1.0
    assert len(sink.delivered) >= 1


def test_force_flush_flushes_the_sink(make):
    """`force_flush` calls the sink's own flush."""
    sink = RecordingSink(local=True)
    assert make(sink).force_flush(1.0)
    assert sink.flushes == 1


def test_force_flush_tells_when_something_waits(make):
    """`force_flush` returns False if it could not deliver everything."""
    pipeline = make(RecordingSink(*[busy(60.0)] * 10))
    pipeline.submit(events(1), 5.0)
    assert not pipeline.force_flush(0.2)


def test_lanes_do_not_hold_up_each_other(make):
    """A lane is delivered while another lane of the same sink is refused and waits."""

    def only_metrics(batch):
        return WriteResult(delivered=batch) if batch[0].lane == "m" else away(batch)

    sink = RecordingSink(*[only_metrics] * 1_000, lane=lambda event: event.measurement)
    pipeline = make(sink)
    pipeline.submit([event_from_sample("logs", 1), *events(2), event_from_sample("logs", 2)], 5.0)
    deadline = time.monotonic() + LONG
    while len(sink.delivered) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert pipeline.health().events_spooled == 2
    sink.answers.clear()
    assert pipeline.force_flush(LONG)
    assert len(sink.delivered) == 4


def test_where_no_thread_starts_a_batch_is_accepted_and_sent_at_the_end(make, no_threads):
    """A batch is accepted when no thread can be started, and sent by `release`.

    At interpreter shutdown none can be started, and the SDK's last export comes then.
    """
    sink = RecordingSink()
    pipeline = make(sink)
    assert pipeline.submit(events(3), 5.0)
    assert pipeline.health().events_dropped == {}
    pipeline.release(LONG)
    assert values(sink) == [0, 1, 2]


def test_what_the_first_of_several_tries_settled_is_counted(make):
    """Records settled by the first try of a direct batch are counted; the rest is retried."""

    def first(batch):
        return WriteResult(
            delivered=batch[:1],
            rejected=[Rejection(batch[1], "invalid")],
            kept=batch[2:],
            retry_after_seconds=0.5,
            error="429",
            error_type="429",
        )

    def second(batch):
        return WriteResult(rejected=[Rejection(record, "invalid") for record in batch])

    pipeline = make(RecordingSink(first, second), clock=FakeClock(), delivery="direct")
    assert pipeline.submit(events(4), 60.0)
    health = pipeline.health()
    assert (health.events_written, health.events_rejected, health.events_dropped) == (1, 3, {})


def test_what_is_accepted_while_closing_is_told(make, tmp_path, caplog):
    """A batch that comes after the thread has ended is on disk, and is counted and logged there."""
    sink = RecordingSink(*[busy(3_600.0)] * 100)
    pipeline = make(sink, spool={"path": str(tmp_path / "spool")})
    assert pipeline.submit(events(2), 5.0)
    late, _ = pipeline._encode(events(3))
    pipeline.release(0.0)
    assert not pipeline._backlog.append(late)
    assert pipeline.health().events_spooled == 5
    assert "2 events wait on disk" in caplog.text


@pytest.mark.parametrize("method", ["flush", "close"])
def test_a_sink_that_raises_at_the_end_does_not_reach_the_application(make, caplog, method):
    """A third-party sink whose `flush` or `close` raises is logged, and costs nothing else."""
    sink = RecordingSink()

    def fail(_seconds):
        raise RuntimeError("secret")

    setattr(sink, method, fail)
    pipeline = make(sink)
    assert pipeline.submit(events(2), 5.0)
    assert pipeline.force_flush(LONG) == (method != "flush")
    pipeline.release(LONG)
    assert f"{method} raised RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    assert values(sink) == [0, 1]


def _fail():
    raise RuntimeError("secret")


@pytest.mark.parametrize(
    ("member", "word"),
    [
        (lambda _: _fail(), "RuntimeError"),
        (property(lambda _: _fail()), "RuntimeError"),
        (lambda _: 1, "AttributeError"),
    ],
)
def test_statistics_that_raise_cost_only_themselves(make, caplog, member, word):
    """A third-party sink whose `statistics` raises, or is wrong, has a health without them."""
    sink = type("Sink", (RecordingSink,), {"statistics": member})()
    pipeline = make(sink)
    assert pipeline.submit(events(2), 5.0)
    assert pipeline.force_flush(LONG)
    health = pipeline.health()
    assert (health.events_written, health.client_statistics) == (2, {})
    assert f"statistics raised {word}" in caplog.text
    assert "secret" not in caplog.text


def test_statistics_that_are_no_numbers_are_left_out(make):
    """What a third-party sink tells besides numbers with names does not get into the health."""
    told = {"sent": 2, "mean": 0.5, "state": "busy", 3: 4, None: 1}
    sink = type("Sink", (RecordingSink,), {"statistics": lambda _: told})()
    assert make(sink).health().client_statistics == {"sent": 2, "mean": 0.5}


def test_a_sink_without_statistics_is_nothing_to_log(make, caplog):
    """The method is optional, so its absence is no message."""
    assert make(RecordingSink()).health().client_statistics == {}
    assert not caplog.records

"""The public test doubles keep the contracts of the classes that they stand for."""

import threading

from otel_cbtop_exporter.delivery.retry import Clock, SystemClock
from otel_cbtop_exporter.encoding.event_json import encode_event
from otel_cbtop_exporter.events import Event, event_from_sample
from otel_cbtop_exporter.sinks.base import Sink, WriteResult
from otel_cbtop_exporter.testing import FakeClock, RecordingSink


def test_the_sink_is_a_sink():
    """RecordingSink has every member of the Sink protocol."""
    sink: Sink = RecordingSink()
    members = {name for name in vars(Sink) if not name.startswith("_")} | set(Sink.__annotations__)
    assert members <= set(dir(sink))


def test_it_keeps_what_was_delivered():
    """Without answers, RecordingSink delivers everything and gives it back as events."""
    sink = RecordingSink()
    records = sink.encode([event_from_sample("m", 1, {"host": "a"}, timestamp_ns=5)]).records
    assert sink.write(records, 1.0) == WriteResult(delivered=records)
    assert sink.events == [
        {
            "measurement": "m",
            "tags": {"host": "a"},
            "fields": {"value": 1},
            "timestamp_ns": 5,
            "schema_version": 1,
        }
    ]


def test_it_writes_what_the_real_sinks_write():
    """RecordingSink encodes and rejects events by the rules of the real sinks."""
    event = event_from_sample("m\ud800", 1)
    encoded = RecordingSink().encode([event, Event("m", {}, {}, 1)])
    assert [record.body for record in encoded.records] == [encode_event(event)]
    assert [rejection.reason for rejection in encoded.rejected] == ["invalid"]


def test_answers_are_given_in_order():
    """Each write takes one answer; a function is called with the records."""
    sink = RecordingSink(WriteResult(error="no"), lambda records: WriteResult(kept=records))
    records = sink.encode([event_from_sample("m", 1)]).records
    assert sink.write(records, 1.0).error == "no"
    assert sink.write(records, 1.0).kept == records
    assert sink.write(records, 1.0).delivered == records
    assert len(sink.writes) == 3


def test_lanes_are_chosen_by_event():
    """The lane function decides the lane of each event."""
    sink = RecordingSink(lane=lambda event: event.measurement)
    records = sink.encode([event_from_sample("a", 1), event_from_sample("b", 1)]).records
    assert [record.lane for record in records] == ["a", "b"]


def test_calls_are_counted():
    """Flushes, closes and forks are counted, and writing goes on after a fork."""
    sink = RecordingSink()
    assert sink.flush(1.0)
    sink.close(1.0)
    sink.after_fork_in_child()
    sink.write([], 1.0)
    assert (sink.flushes, sink.closes, sink.forks) == (1, 1, 1)


def test_both_clocks_are_clocks():
    """FakeClock and SystemClock have every member of the Clock protocol."""
    members = {name for name in vars(Clock) if not name.startswith("_")}
    assert members <= set(dir(FakeClock())) & set(dir(SystemClock()))


def test_a_wait_passes_the_time_at_once():
    """A wait with a timeout moves both of FakeClock's times at once, and is recorded."""
    clock = FakeClock(start_seconds=10.0, start_ns=1_000)
    condition = threading.Condition()
    with condition:
        clock.wait(condition, 2.5)
    assert (clock.monotonic(), clock.time_ns(), clock.waits) == (12.5, 2_500_001_000, [2.5])


def test_a_wall_clock_can_be_set_back():
    """`set_back` moves only the wall clock."""
    clock = FakeClock(start_seconds=10.0, start_ns=5_000_000_000)
    clock.set_back(2)
    assert (clock.monotonic(), clock.time_ns()) == (10.0, 3_000_000_000)


def test_a_wait_without_an_end_really_waits():
    """Without a timeout FakeClock really waits to be notified."""
    clock = FakeClock()
    condition = threading.Condition()
    woken = threading.Event()

    def sleep():
        with condition:
            clock.wait(condition, None)
        woken.set()

    thread = threading.Thread(target=sleep)
    thread.start()
    while not woken.is_set():
        with condition:
            condition.notify_all()
    thread.join()
    assert clock.waits == []

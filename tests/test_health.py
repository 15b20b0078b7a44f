"""Counters and health of sinks."""

import signal
import threading

from otel_cbtop_exporter.health import HealthCounters, SinkHealth, combined
from otel_cbtop_exporter.tally import Tally
from tests.delivery.records import records


def test_before_the_first_write_nothing_is_known():
    """Before the first write a sink is not connected, and all counters are zero."""
    assert HealthCounters().snapshot() == SinkHealth()


def test_every_outcome_is_counted():
    """Written, rejected and dropped events are counted separately, dropped ones by reason."""
    counters = HealthCounters()
    counters.written(records(3), 111)
    counters.written(records(2), 222)
    counters.rejected("invalid", Tally(4))
    counters.dropped("spool_full", Tally(5))
    counters.dropped("spool_full", Tally(6))
    counters.dropped("shutdown", Tally(7))
    counters.values_lost("tag_cut", 1)
    counters.values_lost("tag_cut", 2)
    assert counters.snapshot() == SinkHealth(
        connected=True,
        last_write_ns=222,
        events_written=5,
        events_rejected=4,
        events_dropped={"spool_full": 11, "shutdown": 7},
        values_lost={"tag_cut": 3},
    )


class Interrupted:
    """A tally that raises a signal while it is counted."""

    @property
    def events(self):
        signal.raise_signal(signal.SIGUSR1)
        return 1


def test_a_signal_handler_may_count_on_the_thread_that_counts():
    """A signal handler, which may end a span, does not wait for its own thread's lock."""
    counters = HealthCounters()
    before = signal.signal(signal.SIGUSR1, lambda *_: counters.written(records(2), 1))
    try:
        counters.rejected("invalid", Interrupted())
    finally:
        signal.signal(signal.SIGUSR1, before)
    health = counters.snapshot()
    assert (health.events_written, health.events_rejected) == (2, 1)


def test_connected_says_how_the_last_write_ended():
    """A failure to reach the destination disconnects, and the next success connects."""
    counters = HealthCounters()
    counters.written(records(1), 1)
    counters.write_failed("away", connected=False)
    assert not counters.snapshot().connected
    counters.written(records(1), 2)
    assert counters.snapshot().connected
    counters.write_failed("422", connected=True)
    assert counters.snapshot().connected
    assert counters.snapshot().write_errors == 2


def test_the_last_error_is_kept_and_bounded():
    """last_error is the latest error, cut to 300 characters."""
    counters = HealthCounters()
    counters.write_failed("first", connected=False)
    counters.write_failed("x" * 1_000, connected=False)
    counters.written(records(1), 1)
    assert counters.snapshot().last_error == "x" * 300


def test_a_snapshot_does_not_change():
    """A snapshot does not change while counting goes on."""
    counters = HealthCounters()
    counters.dropped("spool_full", Tally(1))
    before = counters.snapshot()
    counters.dropped("spool_full", Tally(1))
    assert before.events_dropped == {"spool_full": 1}


def test_counters_are_exact_under_threads():
    """Counters are exact when eight threads count at once."""
    counters = HealthCounters()

    def work():
        for _ in range(2_000):
            counters.written(records(1), 1)
            counters.rejected("invalid", Tally(1))
            counters.dropped("spool_full", Tally(1))
            counters.write_failed("x", connected=False)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    health = counters.snapshot()
    assert health.events_written == health.events_rejected == health.write_errors == 16_000
    assert health.events_dropped == {"spool_full": 16_000}


def test_sinks_together_are_as_well_as_the_worst():
    """The health of several sinks adds up, and is connected only if all are."""
    one = SinkHealth(
        connected=True,
        last_write_ns=5,
        events_written=3,
        events_dropped={"a": 1},
        client_statistics={"messages_sent": 5, "round_trip_p99_us": 9},
    )
    two = SinkHealth(
        events_written=4,
        events_dropped={"a": 2, "b": 3},
        values_lost={"tag_cut": 1},
        last_error="away",
        client_statistics={"messages_sent": 1, "round_trip_p99_us": 2},
    )
    both = combined([one, two])
    assert (both.connected, both.events_written, both.last_error) == (False, 7, "away")
    assert both.events_dropped == {"a": 3, "b": 3}
    assert both.values_lost == {"tag_cut": 1}
    assert both.client_statistics == {"messages_sent": 6, "round_trip_p99_us": 9}
    assert combined([one]) == one

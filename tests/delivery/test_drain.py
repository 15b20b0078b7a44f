"""The drain thread: it starts late, sleeps without polling, and stops in time."""

import logging
import threading
import time

import pytest
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from otel_cbtop_exporter.config import RetryConfig
from otel_cbtop_exporter.delivery.drain import Drain
from otel_cbtop_exporter.delivery.lanes import Lanes
from otel_cbtop_exporter.delivery.retry import SYSTEM_CLOCK, SystemClock
from otel_cbtop_exporter.delivery.sender import Sender
from otel_cbtop_exporter.delivery.spool import Spool, SpoolError
from otel_cbtop_exporter.health import HealthCounters
from otel_cbtop_exporter.own_log import RateLimitedLog
from otel_cbtop_exporter.sinks.base import WriteResult
from otel_cbtop_exporter.testing import FakeClock, RecordingSink
from tests.delivery.records import away, busy, records

QUICK = RetryConfig(initial_delay_ms=1, max_delay_ms=5)
LONG = 20.0


class CountingClock(SystemClock):
    """The system clock, which also counts the waits that have a timeout."""

    def __init__(self):
        self.polls = 0

    def wait(self, condition, timeout_seconds):
        self.polls += timeout_seconds is not None
        super().wait(condition, timeout_seconds)


class Bench:
    """A drain thread over a spool in memory."""

    def __init__(self, *answers, retry=QUICK, spools=None, clock=SYSTEM_CLOCK):
        self.sink = RecordingSink(*answers)
        self.spool = Spool()
        log = RateLimitedLog(logging.getLogger("otel_cbtop_exporter"))
        sender = Sender(
            self.sink,
            counters=HealthCounters(),
            log=log,
            retry=retry,
            max_batch_events=None,
            max_batch_bytes=None,
            clock=clock,
            jitter=lambda: 0.5,
            wait=None,
            spooled=True,
        )
        lanes = Lanes(
            spools=spools or (lambda: [self.spool]),
            adopt=lambda: False,
            sender=sender,
            retry=retry,
            clock=clock,
            jitter=lambda: 0.5,
            write_timeout_seconds=5.0,
            reject=lambda rejections, why: None,
        )
        self.drain = Drain(lanes, name="cbtop-test", clock=clock, log=log)

    def append(self, batch):
        self.spool.append(batch)
        self.drain.wake()

    def wait_drained(self, within=LONG, stall=LONG):
        return self.drain.drain(time.monotonic() + within, lambda: stall)

    def stop(self):
        return self.drain.stop(time.monotonic() + LONG, lambda: None)


@pytest.fixture
def bench():
    """Build benches; at the end stop their threads and close their spools."""
    made = []

    def make(*answers, **options):
        made.append(Bench(*answers, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()
        one.spool.close()


def drains():
    return [thread for thread in threading.enumerate() if thread.name == "cbtop-test"]


def test_nothing_starts_before_the_first_record(bench):
    """Making a drain, waiting for it and stopping it start no thread."""
    one = bench()
    assert one.wait_drained().done
    assert one.stop()
    assert drains() == []


def test_one_daemon_thread_delivers(bench):
    """The first record starts one daemon thread, which delivers all that follow."""
    one = bench()
    for n in range(10):
        one.append(records(1, start=n))
    assert one.wait_drained().done
    assert one.sink.delivered == records(10)
    assert [thread.daemon for thread in drains()] == [True]


def test_idle_costs_nothing(bench):
    """With nothing to do, the thread waits without a timeout and never wakes up to poll."""
    clock = CountingClock()
    one = bench(clock=clock)
    one.append(records(1))
    one.wait_drained()
    wait_until(lambda: one.drain._idle)
    before = clock.polls
    one.append(records(1))
    wait_until(lambda: len(one.sink.delivered) == 2)
    assert clock.polls == before


def test_it_tries_for_as_long_as_it_takes(bench):
    """The drain thread has no maximum number of tries."""
    one = bench(*[away] * 30)
    one.append(records(2))
    assert one.wait_drained().done
    assert len(one.sink.writes) == 31


def test_waiting_ends_when_nothing_moves(bench):
    """Waiting is given up after `stall_seconds` without progress, and reports the stall."""
    one = bench(*[away] * 10_000)
    one.append(records(1))
    drained = one.wait_drained(stall=0.05)
    assert not drained.done
    assert 0.03 < drained.stalled_seconds < LONG


def test_waiting_ends_at_its_deadline(bench):
    """Waiting for the drain ends at its deadline."""
    one = bench(*[away] * 10_000)
    one.append(records(1))
    assert not one.wait_drained(within=0.05).done


def test_waiting_does_not_wait_for_a_retry_that_comes_too_late(bench):
    """If the sink asks for a wait past the deadline, waiting for the drain is given up at once."""
    one = bench(*[busy(60.0)] * 100)
    one.append(records(1))
    drained = one.wait_drained(within=30.0)
    assert not drained.done
    assert drained.stalled_seconds < 5.0


def test_waiting_tries_a_backed_off_lane_at_once(bench):
    """A flush does not wait out a Retry-After that began before it."""
    one = bench(busy(60.0))
    one.append(records(1))
    wait_until(lambda: one.sink.writes)
    assert one.wait_drained().done


def test_a_write_that_hangs_does_not_hold_stop(bench):
    """`stop` abandons a thread that hangs in a write, and returns False."""
    release = threading.Event()

    def hang(batch):
        release.wait(LONG)
        return WriteResult(delivered=batch)

    one = bench(hang)
    one.append(records(1))
    wait_until(lambda: one.sink.writes)
    began = time.monotonic()
    assert not one.stop()
    assert time.monotonic() - began < LONG / 2
    release.set()
    wait_until(lambda: not drains())
    assert one.spool.stats().events_spooled == 1


def test_waiting_ends_while_others_append_all_the_time(bench):
    """A flush ends once the records before it have left, even if the spool is never empty."""

    def feeding(batch):  # a request that takes longer than the next record takes to arrive
        one.append(records(1))
        return WriteResult(delivered=batch)

    one = bench(*[feeding] * 100_000)
    one.append(records(3))
    drained = one.wait_drained(within=5.0)
    assert drained.done
    assert one.sink.delivered[:3] == records(3)


def test_stop_wakes_a_thread_that_waits(bench):
    """A backoff of a minute does not delay `stop`."""
    one = bench(*[busy(60.0)] * 100)
    one.append(records(1))
    wait_until(lambda: one.sink.writes)
    assert one.stop()
    assert drains() == []


def test_an_unforeseen_error_does_not_end_the_thread(bench, caplog):
    """The thread survives an error and logs it in one line.

    The line gives the cause of a SpoolError, but only the class of any other exception.
    """
    failures = iter([SpoolError("disk"), RuntimeError("bug")])

    def spools():
        if threading.current_thread() in drains():
            for error in failures:
                raise error
        return [one.spool]

    one = bench(spools=spools)
    one.append(records(1))
    assert one.wait_drained().done
    assert [record.getMessage() for record in caplog.records] == [
        "cbtop-test: SpoolError while sending from the spool (disk); it goes on",
        "cbtop-test: RuntimeError while sending from the spool; it goes on",
    ]


def test_where_no_thread_starts_the_caller_sends(bench, no_threads):
    """If no thread can start, as at interpreter shutdown, the waiting caller sends itself."""
    one = bench(away)
    one.append(records(2))
    one.append(records(2, start=2))
    assert one.wait_drained().done
    assert one.sink.delivered == records(4)
    assert drains() == []


def test_where_no_thread_starts_the_caller_gives_up_in_time(bench, monkeypatch):
    """Sending on the calling thread is also given up after `stall_seconds` without progress."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError))
    one = bench(*[away] * 10_000)
    one.append(records(1))
    drained = one.wait_drained(stall=0.05)
    assert not drained.done


def test_where_no_thread_starts_stop_ends_the_callers_work_too(bench, monkeypatch):
    """If `stop` comes while a caller sends, the caller settles nothing and returns not done."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError))

    def stopped_meanwhile(batch):
        assert one.stop()
        return WriteResult(delivered=batch)

    one = bench(stopped_meanwhile)
    one.append(records(2))
    assert not one.wait_drained().done
    assert one.spool.stats().events_spooled == 2
    assert len(one.sink.writes) == 1


def wait_until(condition, within=LONG):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def deliver(batch):
    return WriteResult(delivered=batch)


def test_a_flush_without_a_thread_is_given_up_after_its_last_progress(bench, no_threads):
    """A slow sink is waited for, and only the time since its last progress counts as stalled."""
    clock = FakeClock()

    def slow(batch):
        clock.advance(1.5)
        return deliver(batch)

    one = bench(*[slow] * 20, *[busy(60.0)] * 100, clock=clock)
    one.sink.max_batch_events = 1
    one.drain._lanes._sender.max_batch_events = 1
    for n in range(21):
        one.append(records(1, start=n))
    drained = one.drain.drain(clock.monotonic() + 1_000, lambda: 2.0)
    assert not drained.done
    assert len(one.sink.delivered) == 20
    assert drained.stalled_seconds == 0.0


def test_waiting_leaves_no_mark_behind(bench):
    """A flush removes its mark.

    Each step looks at every mark, and a service may flush for months.
    """
    one = bench()
    for n in range(3):
        one.append(records(1, start=n))
        assert one.wait_drained().done
    assert one.drain._marks == []


def test_what_a_flush_cannot_see_does_not_reach_its_caller(bench):
    """An error while a flush looks at the spools does not reach its caller, whatever its type.

    The flush is reported as not done: it cannot know that everything was sent.
    """
    here = threading.current_thread()

    def spools():
        if threading.current_thread() is here:
            raise LookupError("bug")
        return [one.spool]

    one = bench(None, *[busy(60.0)] * 100, spools=spools)
    one.drain._lanes._sender.max_batch_events = 1
    one.spool.append(records(1))
    one.spool.append(records(1, start=1))
    one.drain.wake()
    assert not one.wait_drained().done
    assert one.sink.delivered == records(1)


def test_a_record_that_comes_while_the_thread_goes_to_sleep_is_sent(bench):
    """A record that arrives just after the spool was found empty is sent.

    It needs no flush and no further record.
    """

    class Late(Spool):
        looks = 0

        def lanes(self):
            found = super().lanes()
            if not found and self.looks < 2:  # the second look is the last one of a step
                self.looks += 1
                if self.looks == 2:
                    self.append(records(1, start=1))
                    one.drain.wake()
            return found

    late, release = Late(), threading.Event()

    def hang(batch):
        assert release.wait(LONG)
        return deliver(batch)

    one = bench(None, hang, spools=lambda: [late])
    late.append(records(1))
    one.drain.wake()
    wait_until(lambda: len(one.sink.writes) == 2)
    assert not one.wait_drained(within=0.01).done
    release.set()
    assert one.wait_drained().done
    assert one.sink.delivered == records(2)
    late.close()


def test_an_unforeseen_error_is_no_busy_loop(bench):
    """The thread rests for a second between two unforeseen errors."""
    clock = FakeClock()
    failures = iter([RuntimeError("bug")] * 3)

    def spools():
        for error in failures:
            raise error
        return [one.spool]

    one = bench(spools=spools, clock=clock)
    one.append(records(1))
    wait_until(lambda: one.sink.delivered)
    assert clock.waits[:3] == [pytest.approx(1.0)] * 3


def test_the_thread_writes_with_instrumentation_suppressed(bench):
    """Writes suppress instrumentation.

    An instrumented HTTP client would otherwise make a span of each export, for ever.
    """
    seen = []

    def look(batch):
        seen.append(is_instrumentation_enabled())
        return deliver(batch)

    one = bench(look)
    one.append(records(1))
    assert one.wait_drained().done
    assert seen == [False]
    assert is_instrumentation_enabled()


def test_where_no_thread_starts_callers_take_turns(bench, monkeypatch):
    """Two flushes at interpreter shutdown send nothing twice.

    `Thread.start` is patched for the same reason as in `no_threads`; the second flush runs on a
    thread that already existed.
    """
    start = threading.Thread.start

    def refuse(self):
        if self.name == "cbtop-test":
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    second_writes = threading.Event()

    def first(batch):
        other.start()
        second_writes.wait(0.3)  # times out, unless two steps run at once
        return deliver(batch)

    def second(batch):
        second_writes.set()
        return deliver(batch)

    one = bench(first, *[second] * 5)
    other = threading.Thread(target=one.wait_drained)
    one.append(records(2))
    assert one.wait_drained().done
    other.join(LONG)
    assert one.sink.delivered == records(2)


def test_a_handler_that_flushes_on_the_thread_that_sends_keeps_to_its_time(bench, no_threads):
    """A signal handler's flush that interrupts the sending thread ends in time.

    When no thread can be started, it would wait for the very work that it interrupted.
    """
    flushed = []

    def interrupted(batch):
        flushed.append(one.wait_drained(within=0.05).done)
        return deliver(batch)

    one = bench(interrupted)
    one.append(records(2))
    assert one.wait_drained().done
    assert flushed == [False]
    assert one.sink.delivered == records(2)


def test_a_flush_of_others_does_not_prolong_ones_own(bench):
    """A caller gives up when nothing moves in its own time, however often others flush."""
    one = bench(*[away] * 100_000)
    one.append(records(1))
    found = []
    waiter = threading.Thread(target=lambda: found.append(one.wait_drained(3 * LONG, stall=0.2)))
    waiter.start()
    end = time.monotonic() + LONG
    while waiter.is_alive() and time.monotonic() < end:
        one.wait_drained(within=0.01)
    assert not waiter.is_alive()
    assert not found[0].done

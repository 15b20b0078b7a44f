"""The drain thread: it empties the spool for as long as it takes, and costs nothing while idle.

Belongs here: when the thread starts, sleeps, and ends, and how others wait for it. What it
sends next is decided in `lanes.py`.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

import msgspec

from otel_cbtop_exporter._sdk import suppress_instrumentation
from otel_cbtop_exporter.delivery.lanes import Lanes
from otel_cbtop_exporter.delivery.retry import Clock
from otel_cbtop_exporter.delivery.spool import SpoolError
from otel_cbtop_exporter.own_log import RateLimitedLog

__all__ = ["Drain", "Drained"]

# After an error that nobody foresaw, so that it cannot become a busy loop.
_PAUSE_SECONDS = 1.0
# A thread that is only waiting ends at once; one that hangs in a write is not waited for.
_JOIN_SECONDS = 0.2


class Drained(msgspec.Struct, frozen=True):
    """How waiting for the drain ended.

    Attributes:
        done: Whether everything that had been accepted has left the spool.
        stalled_seconds: How long nothing moved before it was given up; 0.0 if done.
    """

    done: bool
    stalled_seconds: float


class _Mark:
    """Up to where a caller of `drain` waits.

    Args:
        ns: When its newest record was appended; None if that is not known.
    """

    def __init__(self, ns: int | None) -> None:
        self.ns = ns
        self.has_passed = False


class Drain:
    """One daemon thread that sends what waits, started with the first `wake`.

    Args:
        lanes: Decides and sends.
        name: Of the thread.
        clock: Time.
        log: Told of errors that nobody foresaw.
    """

    def __init__(
        self,
        lanes: Lanes,
        *,
        name: str,
        clock: Clock,
        log: RateLimitedLog,
    ) -> None:
        self._lanes = lanes
        self._name = name
        self._clock = clock
        self._log = log
        # It guards what is below, but for `_stepping` and `_marks`, whose changes are atomic; it
        # is never held over a write or a call of the spool.
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._appends = 0
        self._drained = 0  # the appends after which the spool was last seen empty
        self._marks: list[_Mark] = []  # one for each caller of `drain`
        self._progress_at = 0.0
        self._next_try: float | None = None  # None while it works, and while nothing waits
        self._idle = False
        self._hurried = False
        self._unreadable = 0  # how many steps in a row ended so
        self._stopping = False
        # Steps are one thread's at a time, also where callers do the thread's work.
        self._stepping = threading.Lock()

    def wake(self) -> bool:
        """Say that something was appended; starts the thread if it does not run.

        Returns:
            False if `stop` came first, so that nobody will send it any more.
        """
        with self._condition:
            self._appends += 1
            self._condition.notify_all()
            if self._stopping or (self._thread is not None and self._thread.is_alive()):
                return not self._stopping
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # From Python 3.12 an interpreter that is about to end starts none; then
                # whoever waits for the drain does its work.
                return True
            self._thread = thread
            return True

    def drain(self, deadline: float, stall_seconds: Callable[[], float]) -> Drained:
        """Wait until what was accepted up to now has left the spool.

        Every lane is tried at once, whatever it was waiting for. Where no thread can be
        started, the calling thread sends.

        Args:
            deadline: On the clock's `monotonic`; it is given up then.
            stall_seconds: It is given up, too, after nothing has left for what this says then, or
                when nothing would be tried any more within that time; when a place of the spool
                could not be read twice; and at once with `stop`.
        """
        with self._condition:
            wanted = self._appends
            if self._drained >= wanted:
                return Drained(done=True, stalled_seconds=0.0)
        try:
            mark = _Mark(self._lanes.waiting.newest_ns())
        # The application flushes, and must not see it; the thread meets it too, and logs it.
        # Without a mark only an empty spool says that all has left.
        except Exception:  # noqa: BLE001
            mark = _Mark(None)
        self._marks.append(mark)
        try:
            return self._wait(wanted, mark, deadline, stall_seconds)
        finally:
            self._marks.remove(mark)

    def _wait(
        self,
        wanted: int,
        mark: _Mark,
        deadline: float,
        stall_seconds: Callable[[], float],
    ) -> Drained:
        with self._condition:
            began = self._progress_at = self._clock.monotonic()
            self._hurried = True
            self._unreadable = 0
            self._next_try = None
            self._condition.notify_all()
            nobody_works = self._thread is None or not self._thread.is_alive()
        while True:
            with self._condition:
                now = self._clock.monotonic()
                end = min(deadline, self._progress_at + stall_seconds())
                if self._drained >= wanted or mark.has_passed:
                    return Drained(done=True, stalled_seconds=0.0)
                is_late = self._next_try is not None and self._next_try >= end
                hopeless = is_late or self._unreadable > 1
                if now >= end or self._stopping or (hopeless and not self._hurried):
                    stalled = now - max(began, self._progress_at)
                    return Drained(done=False, stalled_seconds=stalled)
                if self._next_try is not None and self._next_try > now:
                    self._clock.wait(self._condition, self._next_try - now)
                    continue
                if not nobody_works:
                    self._clock.wait(self._condition, end - now)
                    continue
            # Not for ever: a signal handler may flush on the thread that is in a step.
            if self._stepping.acquire(timeout=min(end - now, threading.TIMEOUT_MAX)):
                try:
                    self._work(end)
                finally:
                    self._stepping.release()

    def stop(self, deadline: float) -> bool:
        """End the thread; False if it hangs in a write and was left to itself."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(max(0.0, min(_JOIN_SECONDS, deadline - self._clock.monotonic())))
        # Always: where no thread starts, another caller of `drain` may be doing its work.
        try:
            self._lanes.abandon(deadline)
        except SpoolError as error:  # what was delivered stays there, and may be sent again
            self._log.log(logging.WARNING, "abandon", f"{self._name}: {error}")
        return thread is None or not thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            with self._stepping:
                seen = self._work(math.inf)
            with self._condition:
                if self._stopping or self._hurried or self._appends != seen:
                    continue
                if self._idle:
                    self._clock.wait(self._condition, None)
                elif self._next_try is not None:
                    self._clock.wait(self._condition, self._next_try - self._clock.monotonic())

    def _work(self, deadline: float) -> int:
        """Do one step and note what came of it; returns the appends that it began with."""
        with self._condition:
            seen = self._appends
            self._next_try = None
            if self._hurried:
                self._lanes.hurry()
                self._hurried = False
        settled = unreadable = False
        wait_seconds: float | None
        try:
            with suppress_instrumentation():
                step = self._lanes.step(deadline)
            settled, wait_seconds = step.settled, step.wait_seconds
            # Where others append all the time the spool is hardly ever empty.
            waiting = self._lanes.waiting
            for mark in [*self._marks] if settled else ():
                mark.has_passed = mark.ns is not None and not waiting.has_up_to(mark.ns)
        # The edge of the thread: whatever happens, what waits must be tried again.
        except Exception as error:  # noqa: BLE001
            word = type(error).__name__
            unreadable = isinstance(error, SpoolError)
            why = f" ({error})" if unreadable else ""  # others may quote data
            self._log.log(
                logging.ERROR,
                f"drain {word}",
                f"{self._name}: {word} while sending from the spool{why}; it goes on",
            )
            wait_seconds = _PAUSE_SECONDS
        with self._condition:
            now = self._clock.monotonic()
            if settled:
                self._progress_at = now
            self._next_try = now + wait_seconds if wait_seconds else None
            self._idle = wait_seconds is None
            self._unreadable = self._unreadable + 1 if unreadable else 0
            if self._idle and not self._stopping:
                self._drained = seen
            self._condition.notify_all()
        return seen

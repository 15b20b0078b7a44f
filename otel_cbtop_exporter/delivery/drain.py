"""The drain thread: it works until the spool is empty, and costs nothing while idle.

Belongs here: when the thread starts, sleeps and ends, and how others wait for it. Not here:
what it sends next (`lanes.py`).
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from functools import partial

import msgspec

from otel_cbtop_exporter._sdk import suppress_instrumentation
from otel_cbtop_exporter.delivery.lanes import Lanes
from otel_cbtop_exporter.delivery.retry import Clock
from otel_cbtop_exporter.delivery.spool import SpoolError
from otel_cbtop_exporter.own_log import RateLimitedLog
from otel_cbtop_exporter.turn import Turn

__all__ = ["Drain", "Drained"]

# Pause after a step that failed, so that an error cannot turn the thread into a busy loop.
_PAUSE_SECONDS = 1.0
# A thread that is only waiting ends at once; one that hangs in a write is not waited for longer.
_JOIN_SECONDS = 0.2


class Drained(msgspec.Struct, frozen=True):
    """How waiting for the drain ended.

    Attributes:
        done: Whether everything that had been accepted has left the spool.
        stalled_seconds: How long nothing had left when the caller gave up; 0.0 if done.
    """

    done: bool
    stalled_seconds: float


class _Mark:
    """How far the spool must be emptied for one caller of `drain`.

    Args:
        ns: When the newest record it waits for was appended; None if that is not known.
    """

    def __init__(self, ns: int | None) -> None:
        self.ns = ns
        self.has_passed = False


class Drain:
    """One daemon thread that sends what waits, started by the first `wake`.

    Args:
        lanes: Decides what to send, and sends it.
        name: The thread's name.
        clock: Time.
        log: Where to log errors.
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
        # Guards everything below except `_turn` and `_marks` (changes to it are atomic). Never held
        # during a write or a call of the spool. Entered as a lock, because the condition's own
        # methods are Python code, in which a signal handler could raise and leave it locked.
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._appends = 0
        self._drained = 0  # `_appends` as of the last step that found the spool empty
        self._marks: list[_Mark] = []  # one for each caller of `drain`
        self._progress_at = 0.0
        self._next_try: float | None = None  # None during a step, and while nothing waits
        self._idle = False
        self._hurried = False
        self._unreadable = 0  # how many steps in a row ended with a SpoolError
        self._stopping = False
        self._ended = False
        self._at_end: Callable[[], None] | None = None  # set once the thread was left behind
        # One thread at a time may step, also where callers do the drain thread's work.
        self._turn = Turn()

    def wake(self) -> bool:
        """Announce that something was appended; starts the thread if it is not running.

        Returns:
            False if `stop` was called before, so that nobody will send it.
        """
        with self._lock:
            self._appends += 1
            self._condition.notify_all()
            if self._stopping or (self._thread is not None and self._thread.is_alive()):
                return not self._stopping
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # From Python 3.12 on, an interpreter that is shutting down starts no thread.
                # Whoever waits for the drain then does its work.
                return True
            self._thread = thread
            return True

    def drain(self, deadline: float, stall_seconds: Callable[[], float]) -> Drained:
        """Wait until everything accepted so far has left the spool.

        Every lane is tried at once, even one that is backing off. Where no thread can be started,
        the calling thread sends.

        Waiting also ends if the next try would come too late for the limits below, after two steps
        in a row that failed with a SpoolError, and at once after `stop`.

        Args:
            deadline: When to give up, on the clock's `monotonic`.
            stall_seconds: Returns after how long without anything leaving the spool to give up;
                asked again each time.
        """
        with self._lock:
            wanted = self._appends
            if self._drained >= wanted:
                return Drained(done=True, stalled_seconds=0.0)
        try:
            mark = _Mark(self._lanes.waiting.newest_ns())
        # The application that flushes must not see this error; the thread meets it too and logs
        # it. Without a time in the mark, only an empty spool shows that everything has left.
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
        with self._lock:
            began = self._clock.monotonic()
            self._hurried = True
            self._unreadable = 0
            self._next_try = None
            self._condition.notify_all()
            nobody_works = self._thread is None or not self._thread.is_alive()
        while True:
            with self._lock:
                now = self._clock.monotonic()
                end = min(deadline, max(began, self._progress_at) + stall_seconds())
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
            try:
                self._turn.run(end - now, partial(self._work, end))
            except TimeoutError:
                if self._turn.is_mine:  # a signal handler, on the thread that is in a step
                    return Drained(done=False, stalled_seconds=0.0)

    def stop(self, deadline: float, at_end: Callable[[], None]) -> bool:
        """Stop the thread; False if it is still in a step, and was left behind.

        Args:
            deadline: How long to wait for the thread, on the clock's `monotonic`.
            at_end: What a thread that was left behind calls when it ends.
        """
        with self._lock:
            self._stopping = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(max(0.0, min(_JOIN_SECONDS, deadline - self._clock.monotonic())))
        # Always: where no thread can start, a caller of `drain` may be doing its work.
        try:
            self._lanes.abandon(deadline)
        except SpoolError as error:  # delivered records stay in the spool and may be sent again
            self._log.log(logging.WARNING, "abandon", f"{self._name}: {error}")
        with self._lock:
            if thread is None or self._ended or not thread.is_alive():
                return True
            self._at_end = at_end
            return False

    def _run(self) -> None:
        try:
            while not self._stopping:
                seen = self._turn.run(math.inf, partial(self._work, math.inf))
                with self._lock:
                    if self._stopping or self._hurried or self._appends != seen:
                        continue
                    if self._idle:
                        self._clock.wait(self._condition, None)
                    elif self._next_try is not None:
                        self._clock.wait(self._condition, self._next_try - self._clock.monotonic())
        finally:
            with self._lock:
                self._ended = self._stopping
                at_end = self._at_end
            if at_end is not None:
                at_end()

    def _work(self, deadline: float) -> int:
        """Do one step and note its result; returns the count of appends at its beginning."""
        with self._lock:
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
            # Check the marks too: the spool is hardly ever empty while others keep appending.
            waiting = self._lanes.waiting
            for mark in [*self._marks] if settled else ():
                mark.has_passed = mark.ns is not None and not waiting.has_up_to(mark.ns)
        # The thread's outermost handler: whatever happens, what waits must be tried again.
        except Exception as error:  # noqa: BLE001
            word = type(error).__name__
            unreadable = isinstance(error, SpoolError)
            why = f" ({error})" if unreadable else ""  # other errors may quote data
            self._log.log(
                logging.ERROR,
                f"drain {word}",
                f"{self._name}: {word} while sending from the spool{why}; it goes on",
            )
            wait_seconds = _PAUSE_SECONDS
        with self._lock:
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

"""One thread at a time, whatever a signal handler raises meanwhile."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Turn"]

_T = TypeVar("_T")


class Turn:
    """Lets one thread at a time do something; make a new one after a fork."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # it knows its owner: no other thread can release it
        self._thread = 0

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds the turn, as the thread that a signal handler interrupted."""
        return self._thread == threading.get_ident()

    def run(self, timeout_seconds: float, work: Callable[[], _T]) -> _T:
        """Hold the turn while `work` runs; return its result.

        Not a context manager: a handler that raises in `__enter__` or `__exit__` would leave the
        turn taken for as long as somebody keeps the traceback.

        Raises:
            TimeoutError: Another thread held the turn until the timeout, or this thread holds it
                already: a signal handler would wait for the write that it interrupted.
        """
        if self.is_mine:
            raise TimeoutError(errno.ETIMEDOUT, "another write is under way")
        thread = threading.get_ident()
        seconds = min(max(0.0, timeout_seconds), threading.TIMEOUT_MAX)
        try:
            if not self._lock.acquire(timeout=seconds):
                raise TimeoutError(errno.ETIMEDOUT, "another write is under way")
            self._thread = thread
            return work()
        finally:
            # A signal handler may raise as soon as the lock is taken, so only the lock itself
            # knows whether this thread has it. No call comes before the release, not even of
            # `suppress`: a handler could raise in it.
            if self._thread == thread:
                self._thread = 0
            try:  # noqa: SIM105
                self._lock.release()
            except RuntimeError:
                pass

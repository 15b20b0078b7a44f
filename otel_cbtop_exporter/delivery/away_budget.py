"""What is left of the time that this process waits at shutdown for backends that are away."""

from __future__ import annotations

import threading

__all__ = ["AwayBudget"]

# What all pipelines of a process together wait at shutdown for backends that are away, with
# some of the promised 3 s left for closing.
_AWAY_BUDGET_SECONDS = 2.5
# What each of the others has for certain, who may have a backend that is well.
_RESERVE_SECONDS = 0.3


class AwayBudget:
    """One budget for all pipelines of a process; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may shut something down
        self._left_seconds = _AWAY_BUDGET_SECONDS

    def share(self, waiting: int, write_seconds: float) -> float:
        """Return the seconds that one of those who wait may wait without any progress.

        Args:
            waiting: How many wait, or will.
            write_seconds: What the last write took that delivered everything: a slow backend is not
                taken for one that is away.
        """
        with self._lock:
            left = self._left_seconds
            share = left / max(1, waiting)
            mine = left - _RESERVE_SECONDS * (waiting - 1)
            return max(share, min(mine, 2 * write_seconds))

    def spend(self, seconds: float) -> None:
        """Take away time that was waited in vain."""
        with self._lock:
            self._left_seconds = max(0.0, self._left_seconds - seconds)

    def renew(self) -> None:
        """Begin anew: in a forked child, or with a pipeline made after others were closed."""
        self._lock = threading.RLock()
        self._left_seconds = _AWAY_BUDGET_SECONDS

"""The time that this process may still spend at shutdown waiting for unreachable backends."""

from __future__ import annotations

import threading

__all__ = ["AwayBudget"]

# How long all pipelines of a process together wait at shutdown for unreachable backends. It
# leaves some of the promised 3 s for closing.
_AWAY_BUDGET_SECONDS = 2.5
# Reserved for each of the others that wait: their backends may be healthy.
_RESERVE_SECONDS = 0.3


class AwayBudget:
    """One budget for all pipelines of a process; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may shut something down
        self._left_seconds = _AWAY_BUDGET_SECONDS

    def share(self, waiting: int, write_seconds: float) -> float:
        """Return how many seconds the caller may wait without any progress.

        Args:
            waiting: How many wait or will wait, the caller included.
            write_seconds: How long the last write took that delivered everything, so that a slow
                backend is not mistaken for one that is away.
        """
        with self._lock:
            left = self._left_seconds
            share = left / max(1, waiting)
            mine = left - _RESERVE_SECONDS * (waiting - 1)
            return max(share, min(mine, 2 * write_seconds))

    def spend(self, seconds: float) -> None:
        """Subtract time that was spent waiting in vain."""
        with self._lock:
            self._left_seconds = max(0.0, self._left_seconds - seconds)

    def renew(self) -> None:
        """Start afresh: in a forked child, or when a pipeline is made after others were closed."""
        self._lock = threading.RLock()
        self._left_seconds = _AWAY_BUDGET_SECONDS

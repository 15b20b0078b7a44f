"""What is left of the time that this process waits at shutdown for backends that are away."""

from __future__ import annotations

import threading

__all__ = ["AwayBudget"]

# What all pipelines of a process together wait at shutdown for backends that are away, with
# some of the promised 3 s left for closing.
_AWAY_BUDGET_SECONDS = 2.5


class AwayBudget:
    """One budget for all pipelines of a process; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left_seconds = _AWAY_BUDGET_SECONDS

    def share(self, pipelines: int) -> float:
        """Return the seconds that one of the open pipelines may wait without any progress."""
        with self._lock:
            return self._left_seconds / max(1, pipelines)

    def spend(self, seconds: float) -> None:
        """Take away time that was waited in vain."""
        with self._lock:
            self._left_seconds = max(0.0, self._left_seconds - seconds)

    def renew(self) -> None:
        """Begin anew: in a forked child, or with a pipeline made after others were closed."""
        self._lock = threading.Lock()
        self._left_seconds = _AWAY_BUDGET_SECONDS

"""How long to wait before records are tried again, and the clock that measures it.

Not here: the waiting itself. A direct send waits in `sender.py`, the drain thread in `drain.py`.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from otel_cbtop_exporter.config import RetryConfig

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock", "next_delay_seconds"]


class Clock(Protocol):
    """Time as delivery needs it; `testing.FakeClock` is another implementation."""

    def monotonic(self) -> float:
        """Return seconds that never go back, for deadlines."""
        ...

    def time_ns(self) -> int:
        """Return nanoseconds since the Unix epoch, for people and for ages."""
        ...

    def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
        """Wait on a condition that the caller holds; None waits without a timeout."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    def time_ns(self) -> int:
        """Return nanoseconds since the Unix epoch."""
        return time.time_ns()

    def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
        """Wait on a condition that the caller holds."""
        condition.wait(timeout_seconds)


SYSTEM_CLOCK = SystemClock()


def next_delay_seconds(
    attempt: int, retry: RetryConfig, *, asked_seconds: float | None, jitter: float
) -> float:
    """Return how long to wait before the next try: exponential backoff with full jitter.

    The sink's Retry-After wins only if it is longer than our own delay, so a sink cannot make us
    hammer it.

    Args:
        attempt: Retries already made, from 0.
        retry: Bounds of the backoff.
        asked_seconds: The sink's Retry-After, or None if it gave none.
        jitter: A number in [0, 1); the caller draws it, so that tests can choose it.

    Returns:
        Seconds; above `retry.max_delay_ms` only if the sink asked for it.
    """
    ours = retry.delay_for_attempt(attempt) * jitter / 1_000
    return ours if asked_seconds is None else max(ours, asked_seconds)

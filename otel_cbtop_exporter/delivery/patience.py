"""How long a direct send may take while the backend takes nothing."""

from __future__ import annotations

__all__ = ["Patience"]

_SHORT_SECONDS = 1.0
_SHORT_FOR_SECONDS = 30.0


class Patience:
    """After a send of a second or more that settled nothing, sends get a second each, for 30 s.

    A process that ends has several batches left, of each signal, and would wait for each of them.
    """

    def __init__(self) -> None:
        self._short_until = 0.0

    def deadline(self, deadline: float, now: float) -> float:
        """Return until when a send that begins now may take, on the monotonic clock."""
        return min(deadline, now + _SHORT_SECONDS) if now < self._short_until else deadline

    def ended(self, began: float, now: float, *, in_vain: bool) -> None:
        """Take note of how a send ended."""
        if not in_vain:
            self._short_until = 0.0
        elif began >= self._short_until and now - began >= _SHORT_SECONDS:
            self._short_until = now + _SHORT_FOR_SECONDS

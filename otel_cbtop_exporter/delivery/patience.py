"""How long a direct send may take while the backend accepts nothing."""

from __future__ import annotations

__all__ = ["Patience"]

_SHORT_SECONDS = 1.0
_SHORT_FOR_SECONDS = 30.0


class Patience:
    """Limits sends to a second each for 30 s, after one took a second or more and settled nothing.

    A process that is ending has several batches left, for each signal, and would otherwise wait
    the full time for each of them.
    """

    def __init__(self) -> None:
        self._short_until = 0.0

    def deadline(self, deadline: float, now: float) -> float:
        """Return when a send that begins now must end, on the monotonic clock."""
        return min(deadline, now + _SHORT_SECONDS) if now < self._short_until else deadline

    def ended(self, began: float, now: float, *, in_vain: bool) -> None:
        """Note how a send ended; `in_vain` if it settled nothing."""
        if not in_vain:
            self._short_until = 0.0
        elif began >= self._short_until and now - began >= _SHORT_SECONDS:
            self._short_until = now + _SHORT_FOR_SECONDS

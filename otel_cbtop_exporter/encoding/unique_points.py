"""Which nanoseconds of a series are taken.

InfluxDB keeps one point for each measurement, tag set and time: a second one overwrites the
first, without a word. This table is what lets an encoder notice.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["UniquePoints"]


class UniquePoints:
    """The pairs of series and time that were taken or asked for most recently.

    Not safe to share between threads: whoever owns it locks.

    Args:
        max_pairs: How many pairs are remembered; full, they are about 13 MB.
    """

    def __init__(self, max_pairs: int = 65_536) -> None:
        # The value says where to look next when the pair is taken, so that a thousand events
        # of one time cost no thousand looks.
        self._next_ns: OrderedDict[tuple[str, int], int | None] = OrderedDict()
        self._max_pairs = max_pairs

    def take(self, series: str, time_ns: int) -> bool:
        """Take a pair; False if it is taken."""
        pair = (series, time_ns)
        if pair in self._next_ns:
            return False
        self._next_ns[pair] = None
        if len(self._next_ns) > self._max_pairs:
            self._next_ns.popitem(last=False)
        return True

    def take_next(self, series: str, time_ns: int) -> int:
        """Take the first free nanosecond of a series at or after a time, and return it."""
        if self.take(series, time_ns):
            return time_ns
        passed: list[tuple[str, int]] = []
        free_ns = time_ns
        while (pair := (series, free_ns)) in self._next_ns:
            passed.append(pair)
            free_ns = self._next_ns[pair] or free_ns + 1
        for pair in passed:
            self._next_ns[pair] = free_ns + 1
        # Asked for again and again, a time outlives what it was moved to: its hint leads past
        # more equal times than there is room for.
        self._next_ns.move_to_end((series, time_ns))
        self.take(series, free_ns)
        return free_ns

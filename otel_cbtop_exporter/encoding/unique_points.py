"""Remembers which nanoseconds of a series are taken.

InfluxDB keeps one point for each measurement, tag set and time: a second point silently overwrites
the first. These tables let an encoder notice that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["CollectedPoints", "UniquePoints"]

# A dict of 16,384 slots is full with 10,922 keys, and takes 27 bytes per key. An int of 60 bits
# takes 32 bytes, one of 64 bits takes 48.
_MAX_PAIRS = 3 * 10_922
_PAIR_BITS = 2**60 - 1


class _Generation(dict[int, "int | None"]):
    """Pairs that were stored in the same period.

    The value of a taken pair says where to look next, so that the last of a thousand events of one
    time does not take a thousand lookups.

    Attributes:
        latest_ns: No pair has a later time, so new pairs usually need no lookup.
    """

    __slots__ = ("latest_ns",)

    def __init__(self) -> None:
        super().__init__()
        self.latest_ns = -(2**63)


class UniquePoints:
    """The pairs of series and time that were taken or asked for most recently.

    Only the hash of a pair is stored. It takes less than a third of the memory of the pair itself,
    and is not an object that the garbage collector walks. There are 2 to the 60 hashes; if two
    different pairs have the same one, the second is treated as taken, and is moved by a nanosecond.

    Pairs are kept in three generations: when the newest is full, the oldest is dropped. That costs
    nothing per pair, whereas a strict order would.

    Not safe to share between threads: the owner must lock.

    Args:
        max_pairs: The most pairs that are remembered, although a single batch may exceed it. At
            least two thirds as many, less a batch, are remembered. The default number takes 2 MB.
    """

    def __init__(self, max_pairs: int = _MAX_PAIRS) -> None:
        self._generations = [_Generation(), _Generation(), _Generation()]  # the newest first
        self._max_generation = max_pairs // 3

    def take_all(self, series: Sequence[str], times_ns: Sequence[int]) -> bool:
        """Take all pairs; take none and return False if one is already taken or occurs twice."""
        pairs = dict.fromkeys(
            [hash(pair) & _PAIR_BITS for pair in zip(series, times_ns, strict=True)]
        )
        if len(pairs) < len(series):
            return False
        earliest_ns = min(times_ns)
        for generation in self._generations:
            is_later = earliest_ns > generation.latest_ns
            if not is_later and not generation.keys().isdisjoint(pairs.keys()):
                return False
        self._keep(pairs, max(times_ns))
        return True

    def take_next(self, series: str, time_ns: int) -> int:
        """Take and return the first free nanosecond of a series at or after a time."""
        passed: list[int] = []
        free_ns = time_ns
        pair = hash((series, free_ns)) & _PAIR_BITS
        while (known := self._known(pair, free_ns)) is not None:
            passed.append(pair)
            free_ns = known[pair] or free_ns + 1
            pair = hash((series, free_ns)) & _PAIR_BITS
        # Every pair that was looked up is stored again, with a hint to where the next free one may
        # be. So events of one time find free places even if there are more of them than pairs
        # are remembered.
        self._keep({**dict.fromkeys(passed, free_ns + 1), pair: None}, free_ns)
        return free_ns

    def take_next_all(self, series: Sequence[str], times_ns: list[int]) -> list[int]:
        """Take the next free nanosecond of each series; return `times_ns` itself if none moved."""
        if self.take_all(series, times_ns):
            return times_ns
        return [self.take_next(*pair) for pair in zip(series, times_ns, strict=True)]

    def _known(self, pair: int, time_ns: int) -> _Generation | None:
        """Return the newest generation that contains a pair, whose time is `time_ns`."""
        for generation in self._generations:
            if time_ns <= generation.latest_ns and pair in generation:
                return generation
        return None

    def _keep(self, pairs: Mapping[int, int | None], latest_ns: int) -> None:
        newest, older, _ = self._generations
        if len(newest) + len(pairs) > self._max_generation:
            newest = _Generation()
            self._generations = [newest, self._generations[0], older]
        newest.update(pairs)
        newest.latest_ns = max(newest.latest_ns, latest_ns)


class CollectedPoints:
    """The pairs of series and time of metric points, which are refused if taken, and never moved.

    All points of a collection have the same time, so a set of series for each time does the work
    of `UniquePoints` in half the time. Like that class it is bounded, drops its oldest pairs, and
    has no lock.

    Args:
        max_pairs: The most pairs that are remembered, apart from those of one batch. At least half
            as many are remembered. The default number takes about 6 MB.
    """

    def __init__(self, max_pairs: int = 65_536) -> None:
        self._newer: dict[int, set[bytes]] = {}
        self._older: dict[int, set[bytes]] = {}
        self._count = 0
        self._max_half = max_pairs // 2

    def take_all(self, series: Sequence[bytes], time_ns: int) -> bool:
        """Take pairs of one time; take none and return False if one is taken or occurs twice."""
        wanted = set(series)
        if len(wanted) < len(series):
            return False
        for known in (self._newer.get(time_ns), self._older.get(time_ns)):
            if known is not None and not known.isdisjoint(wanted):
                return False
        self._newer.setdefault(time_ns, wanted).update(wanted)
        self._count += len(wanted)
        if self._count >= self._max_half:
            self._older, self._newer, self._count = self._newer, {}, 0
        return True

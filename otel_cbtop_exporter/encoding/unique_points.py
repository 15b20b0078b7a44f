"""Which nanoseconds of a series are taken.

InfluxDB keeps one point for each measurement, tag set and time: a second one overwrites the
first, without a word. This table is what lets an encoder notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["CollectedPoints", "UniquePoints"]

# A dict of 16,384 slots is full with 10,922 keys, and takes 27 bytes for each. An int of 60 bits
# takes 32, one of 64 takes 48.
_MAX_PAIRS = 3 * 10_922
_PAIR_BITS = 2**60 - 1


class _Generation(dict[int, "int | None"]):
    """Pairs that were kept one after the other.

    The value says where to look next when the pair is taken, so that a thousand events of one
    time cost no thousand looks.

    Attributes:
        latest_ns: No pair has a later time: what is new as a rule need not be looked up.
    """

    __slots__ = ("latest_ns",)

    def __init__(self) -> None:
        super().__init__()
        self.latest_ns = -(2**63)


class UniquePoints:
    """The pairs of series and time that were taken or asked for most recently.

    A pair is known by its hash, in less than a third of the memory of the pair itself and without
    an object for the garbage collector to walk. Two pairs of one hash, of 2 to the 60, cost the
    second one what an equal pair costs: a nanosecond.

    They are in three generations: when the newest is full, the oldest is forgotten. That costs
    nothing for each pair, where a strict order would.

    Not safe to share between threads: whoever owns it locks.

    Args:
        max_pairs: How many pairs are remembered at most, and two thirds of them at least, less
            a batch; one batch may be more. Full, the default ones are 2 MB.
    """

    def __init__(self, max_pairs: int = _MAX_PAIRS) -> None:
        self._generations = [_Generation(), _Generation(), _Generation()]  # the newest first
        self._max_generation = max_pairs // 3

    def take_all(self, series: Sequence[str], times_ns: Sequence[int]) -> bool:
        """Take pairs; False, and none of them, if one is taken or there twice."""
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
        """Take the first free nanosecond of a series at or after a time, and return it."""
        passed: list[int] = []
        free_ns = time_ns
        pair = hash((series, free_ns)) & _PAIR_BITS
        while (known := self._known(pair, free_ns)) is not None:
            passed.append(pair)
            free_ns = known[pair] or free_ns + 1
            pair = hash((series, free_ns)) & _PAIR_BITS
        # A pair that is asked for is kept anew, with a hint to what is free behind it: so events of
        # one time find their places also where there are more of them than pairs are remembered.
        self._keep({**dict.fromkeys(passed, free_ns + 1), pair: None}, free_ns)
        return free_ns

    def take_next_all(self, series: Sequence[str], times_ns: list[int]) -> list[int]:
        """Take for each series the next free nanosecond; returns `times_ns` if none was moved."""
        if self.take_all(series, times_ns):
            return times_ns
        return [self.take_next(*pair) for pair in zip(series, times_ns, strict=True)]

    def _known(self, pair: int, time_ns: int) -> _Generation | None:
        """Return the newest generation that has a pair of a time."""
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
    """The pairs of series and time of metrics' points, which are refused and never moved.

    All points of a collection have one time, so a set of series for each time says the same as
    `UniquePoints` in half of the time. Bounded, forgetful and unlocked as that is.

    Args:
        max_pairs: How many pairs are remembered at most, but for those of one batch, and half of
            them at least; full, they are about 6 MB.
    """

    def __init__(self, max_pairs: int = 65_536) -> None:
        self._newer: dict[int, set[bytes]] = {}
        self._older: dict[int, set[bytes]] = {}
        self._count = 0
        self._max_half = max_pairs // 2

    def take_all(self, series: Sequence[bytes], time_ns: int) -> bool:
        """Take pairs of one time; False, and none of them, if one is taken or there twice."""
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

"""How everything here is measured: the same data, the same run, interleaved rounds, minima.

On a shared machine the median is 1.4 to 1.7 times the minimum, and changes from minute to
minute; ratios of minima are repeatable. Both are reported.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        rounds: How many rounds an interleaved comparison has.
        quick: Whether this is a smoke run: everything runs once or twice on very little data,
            and the figures mean nothing.
    """

    rounds: int = 60
    quick: bool = False

    def of(self, full: int, quick: int) -> int:
        """Return the size for this scale."""
        return quick if self.quick else full

    def of_rounds(self, full: int) -> Scale:
        """Return the scale for a comparison that needs another number of rounds."""
        return self if self.quick else Scale(rounds=full)


FULL = Scale()
QUICK = Scale(rounds=2, quick=True)


@dataclass(frozen=True)
class Timing:
    """The seconds that each call took, and the number of items in one call."""

    seconds: tuple[float, ...]
    items: int

    @property
    def best_us(self) -> float:
        return min(self.seconds) * 1e6 / self.items

    @property
    def median_us(self) -> float:
        return statistics.median(self.seconds) * 1e6 / self.items

    @property
    def mean_us(self) -> float:
        return statistics.fmean(self.seconds) * 1e6 / self.items

    @property
    def rate(self) -> str:
        """Items per second, by the minimum and in brackets by the median."""
        return f"{1e6 / self.best_us:,.0f} ({1e6 / self.median_us:,.0f})"

    def __str__(self) -> str:
        if self.best_us < 1_000:
            return f"{figure(self.best_us)} us ({figure(self.median_us)})"
        return f"{figure(self.best_us / 1e3)} ms ({figure(self.median_us / 1e3)})"


@dataclass(frozen=True)
class Row:
    """A line of the table of targets.

    Attributes:
        work: What was measured.
        against: What it is compared with.
        ours: A figure of ours, with its unit.
        theirs: The same figure of what it is compared with.
        measured: The value that is compared with `gate` and `goal`.
        gate: Below it (above it, for `at_most`) the target is missed.
        goal: What was aimed for.
        at_most: Whether less is better.
        unit: The unit printed after `measured`.
    """

    work: str
    against: str
    ours: str
    theirs: str
    measured: float
    gate: float
    goal: float
    at_most: bool = False
    unit: str = "x"

    @property
    def verdict(self) -> str:
        if self._reaches(self.goal):
            return "goal met"
        return "met" if self._reaches(self.gate) else "NOT MET"

    def _reaches(self, target: float) -> bool:
        return self.measured <= target if self.at_most else self.measured >= target


@dataclass(frozen=True)
class Curve:
    """How a cost grows: one chart, one line for each name."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, list[tuple[float, float]]]
    log_x: bool = True


@dataclass
class Report:
    """What one benchmark found."""

    title: str
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)


def cheaper(
    work: str, against: str, ours: Timing, theirs: Timing, *, gate: float, goal: float
) -> Row:
    """Compare minima: how many times less time ours takes."""
    ratio = theirs.best_us / ours.best_us
    return Row(work, against, str(ours), str(theirs), ratio, gate, goal)


def interleaved(
    works: Mapping[str, Callable[[Any], object]],
    make: Callable[[], Any],
    *,
    items: int,
    scale: Scale,
    clock: Callable[[], float] = time.process_time,
    settle: Callable[[], object] | None = None,
    passes: int = 1,
) -> dict[str, Timing]:
    """Time each work in each round, on data that is new in each round and the same for all works.

    The first work of a round also pays for touching the data first, so the order rotates.
    `settle` is called after each call of a work and is not timed: it waits for other threads to
    finish. Each work is called `passes` times in a row, and each call is timed separately. The
    first call finds the caches full of the other works' data, which takes half of the time of a
    work of microseconds, so the minimum comes from a later call.
    """
    names = list(works)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(scale.rounds + 1):
        data = make()
        gc.collect()
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for _ in range(passes):
                begin = clock()
                works[name](data)
                taken = clock() - begin
                if settle is not None:
                    settle()
                if number:  # the first round fills caches
                    seconds[name].append(taken)
    return {name: Timing(tuple(taken), items) for name, taken in seconds.items()}


def figure(value: float) -> str:
    """Format a figure with about three digits."""
    if value == 0:
        return "0"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"

"""The fields of data points as columns, and whether they keep the promises of `EventTable`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, chain, repeat
from operator import add, is_
from typing import Any

from opentelemetry.sdk.metrics.export import HistogramDataPoint

from otel_cbtop_exporter.event_table import INT64_MAX, MAX_NUMBER, MIN_NUMBER
from otel_cbtop_exporter.mapping.attributes import is_finite
from otel_cbtop_exporter.mapping.metric_series import MetricSeries

__all__ = ["are_integers", "are_numbers", "histogram_columns"]


def histogram_columns(
    series: MetricSeries, points: Sequence[HistogramDataPoint]
) -> dict[str, Sequence[Any]] | None:
    """Return the fields of histograms as columns.

    Returns:
        None if the points do not all have the same fields, or a value breaks a table's promises.
    """
    if not points:
        return {}
    bounds = points[0].explicit_bounds
    names = series.bound_names(bounds)
    counts = [point.bucket_counts for point in points]
    if (
        [point.explicit_bounds for point in points].count(bounds) < len(points)
        or set(map(len, counts)) != {len(names) - 1}
        or len(set(names)) < len(names)
    ):
        return None
    totals = [point.count for point in points]
    sums = _sums_below_256(totals, counts) or _sums(totals, counts)
    if sums is None:
        return None
    columns: dict[str, Sequence[Any]] = dict(zip(names, sums, strict=True))
    starts_ns = [point.start_time_unix_nano for point in points]
    ranges = {"min": [point.min for point in points], "max": [point.max for point in points]}
    for name, column in list(ranges.items()):
        # A view can turn off min and max.
        if _is_unrecorded(column[0]) and all(map(_is_unrecorded, column)):
            del ranges[name]
    added_up = [point.sum for point in points]
    columns.update(ranges, start_time_ns=starts_ns, sum=added_up)
    if are_integers(starts_ns) and are_numbers([*chain.from_iterable(ranges.values()), *added_up]):
        return columns
    return None


def _sums_below_256(
    totals: Sequence[int], counts: Sequence[Sequence[int]]
) -> list[Sequence[int]] | None:
    """Return the same as `_sums` in half the time; None if any sum is 256 or more.

    The counts of one bucket, a byte for each point, form one long integer. Adding two of these
    integers adds the counts of all points at once.
    """
    try:
        expected = bytes(totals)
        added = accumulate(
            int.from_bytes(bytes(column), "little") for column in zip(*counts, strict=True)
        )
        sums = [total.to_bytes(len(totals), "little") for total in added]
    except (TypeError, ValueError, OverflowError):
        return None
    # If the last sums equal the points' own counts, no byte has overflowed into the next one.
    return [expected, *sums] if sums[-1] == expected else None


def _sums(totals: Sequence[int], counts: Sequence[Sequence[int]]) -> list[Sequence[int]] | None:
    """Return each point's count, then for each bucket the cumulative counts of all points.

    Args:
        totals: The count of each point.
        counts: The bucket counts of each point.

    Returns:
        None if the numbers break a table's promises.
    """
    first, *others = accumulate(zip(*counts, strict=True), _added)
    sums = [first, *others]
    # Every later row adds a column to the row before it, so the first and the last tell for all.
    if are_integers(totals) and are_integers(sums[-1]) and set(map(type, first)) == {int}:
        return [totals, *sums]
    return None


def _is_unrecorded(value: Any) -> bool:
    return value is None or (type(value) is float and math.isinf(value))


def _added(totals: Sequence[int], column: Sequence[int]) -> Sequence[int]:
    # The buckets at both ends are usually empty.
    return list(map(add, totals, column)) if any(column) else totals


def are_integers(numbers: Sequence[Any]) -> bool:
    """Say whether there are any, and all are integers of at most 63 bits and not negative."""
    if not numbers:
        return False
    first = numbers[0]
    if all(map(is_, numbers, repeat(first))):  # one object, like the time of a collection
        return type(first) is int and 0 <= first <= INT64_MAX
    return set(map(type, numbers)) == {int} and min(numbers) >= 0 and max(numbers) <= INT64_MAX


def are_numbers(values: Sequence[Any]) -> bool:
    """Say whether there are any, and all are finite numbers of Python's own types.

    Integers must be small enough for a float to hold exactly.
    """
    kinds = set(map(type, values))
    if not kinds or not kinds <= {int, float}:
        return False
    if int in kinds and not (min(values) >= MIN_NUMBER and max(values) <= MAX_NUMBER):
        return False
    # A NaN or an infinity among the values makes their sum non-finite, too.
    return float not in kinds or is_finite(sum(values))

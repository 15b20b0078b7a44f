"""Adds up data points of one metric that have the same tags.

To the SDK, `200`, `"200"` and `HTTPStatus.OK` are three series, and an empty text differs from an
absent one. Tags are texts, so to InfluxDB they are one series, which has one value at a time; the
second point would be lost. Sums and histograms are therefore added up, as when a view drops the
attribute. Gauges have no sum, and a point does not say when its value was set, so they are left
as they are.

Semantics: https://opentelemetry.io/docs/specs/otel/metrics/data-model/, "Spatial reaggregation".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint

from otel_cbtop_exporter.mapping.attributes import finite_number
from otel_cbtop_exporter.tag_set import TagColumn, TagSet

__all__ = ["add_up"]

# The most buckets that adding up gives one side of an exponential histogram: the SDK's own default.
_MOST_BUCKETS = 160

_Side = tuple[int, Any]
"""A scale, and buckets at that scale."""


def add_up(points: Sequence[Any], tag_sets: TagColumn) -> tuple[Sequence[Any], TagColumn]:
    """Return one point for each tag set and time, and the tags of each.

    Points that cannot be added up stay separate: histograms with different bounds, and numbers
    that are not finite or have no finite sum. Refusing the second point of a series is left to
    later code.

    Args:
        points: The points of one metric, which is not a gauge.
        tag_sets: The tags of each point.
    """
    made: dict[tuple[TagSet, int], Any] = {}
    for number, (point, tags) in enumerate(zip(points, tag_sets, strict=True)):
        key = (tags, point.time_unix_nano)
        twin = made.get(key)
        both = point if twin is None else _added(twin, point)
        if both is None or not _has_value(point):
            made[tags, -1 - number] = point  # a negative time, so that no other point has this key
        else:
            made[key] = both
    return list(made.values()), TagColumn(tags for tags, _ in made)


def _has_value(point: Any) -> bool:
    return not isinstance(point, NumberDataPoint) or finite_number(point.value) is not None


def _added(one: Any, other: Any) -> Any:
    """Return the sum of two points, or None if they cannot be added up."""
    starts_ns = [one.start_time_unix_nano, other.start_time_unix_nano]
    common: dict[str, Any] = {
        "start_time_unix_nano": None if None in starts_ns else min(starts_ns),
        "exemplars": [*one.exemplars, *other.exemplars],
    }
    if isinstance(one, NumberDataPoint):
        value = _sum(one.value, other.value)
        return None if value is None else replace(one, value=value, **common)
    common["count"] = one.count + other.count
    common["sum"] = _sum(one.sum, other.sum)
    # A view can turn off min and max.
    common["min"] = min(_numbers(one.min, other.min), default=None)
    common["max"] = max(_numbers(one.max, other.max), default=None)
    if isinstance(one, HistogramDataPoint):
        if (one.explicit_bounds, len(one.bucket_counts)) != (
            other.explicit_bounds,
            len(other.bucket_counts),
        ):
            return None
        counts = [a + b for a, b in zip(one.bucket_counts, other.bucket_counts, strict=True)]
        return replace(one, bucket_counts=counts, **common)
    positive: list[_Side] = [(one.scale, one.positive), (other.scale, other.positive)]
    negative: list[_Side] = [(one.scale, one.negative), (other.scale, other.negative)]
    scale = min(_common_scale(positive), _common_scale(negative))
    return replace(
        one,
        scale=scale,
        zero_count=one.zero_count + other.zero_count,
        positive=_buckets_at(scale, positive),
        negative=_buckets_at(scale, negative),
        **common,
    )


def _numbers(*values: Any) -> list[float]:
    return [number for value in values if (number := finite_number(value)) is not None]


def _sum(*values: Any) -> float | None:
    """Return the sum of numbers; None if one of them, or the sum, is not finite."""
    numbers = _numbers(*values)
    try:
        return finite_number(sum(numbers)) if len(numbers) == len(values) else None
    except OverflowError:  # a float, and an integer too large for one
        return None


def _common_scale(sides: Sequence[_Side]) -> int:
    """Return the finest scale that both sides can be brought to and that needs few enough buckets.

    The SDK keeps a single value at scale 20, where two values are millions of buckets apart.
    """
    scale = min(finer for finer, _ in sides)
    most = max(_MOST_BUCKETS, *(len(buckets.bucket_counts) for _, buckets in sides))
    ends = [
        (finer, buckets.offset, buckets.offset + len(buckets.bucket_counts) - 1)
        for finer, buckets in sides
        if any(buckets.bucket_counts)
    ]
    while ends:
        first = min(first >> (finer - scale) for finer, first, _ in ends)
        last = max(last >> (finer - scale) for finer, _, last in ends)
        if last - first < most:
            break
        scale -= 1
    return scale


def _buckets_at(scale: int, sides: Sequence[_Side]) -> Any:
    """Add up buckets of exponential histograms, at a scale no finer than theirs.

    One step down in scale halves the index, rounded down: two neighbours become one bucket.
    """
    counts = Counter[int]()
    for finer, buckets in sides:
        for index, count in enumerate(buckets.bucket_counts, buckets.offset):
            if count:
                counts[index >> (finer - scale)] += count
    first, last = min(counts, default=0), max(counts, default=-1)
    return replace(
        sides[0][1],
        offset=first,
        bucket_counts=[counts[index] for index in range(first, last + 1)],
    )

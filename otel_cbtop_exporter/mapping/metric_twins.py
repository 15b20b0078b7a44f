"""Data points of one metric that tags cannot tell apart, added up to one.

To the SDK `200`, `"200"` and `HTTPStatus.OK` are three series, and an empty text is not an absent
one. Tags are texts, so to InfluxDB they are one series, which has one value at a time; the second
point would be lost. Sums and histograms are added up as where a view leaves out the attribute. Of
gauges there is no sum, and a point does not say when its value was set: they are left as they are.

Semantics: https://opentelemetry.io/docs/specs/otel/metrics/data-model/, "Spatial reaggregation".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint

from otel_cbtop_exporter.mapping.attributes import is_finite
from otel_cbtop_exporter.tag_set import TagColumn, TagSet

__all__ = ["add_up", "has_twins"]

# The most that one side of an exponential histogram gets by being added up: the SDK's own default.
_MOST_BUCKETS = 160

_Side = tuple[int, Any]
"""A scale, and the buckets that have it."""


def has_twins(tag_sets: Sequence[TagSet]) -> bool:
    """Whether two of them are equal."""
    return len(tag_sets) > 1 and len({bytes(tags.json) for tags in tag_sets}) < len(tag_sets)


def add_up(points: Sequence[Any], tag_sets: TagColumn) -> tuple[Sequence[Any], TagColumn]:
    """Return one point for each tag set and time, and the tags of each.

    What cannot be added up stays a point of its own, for whoever refuses the second one of a
    series: histograms of other bounds, and what has no finite sum.

    Args:
        points: Of one metric, no gauge.
        tag_sets: Of each point.
    """
    made: dict[tuple[bytes, int], tuple[Any, TagSet]] = {}
    for number, (point, tags) in enumerate(zip(points, tag_sets, strict=True)):
        key = (bytes(tags.json), point.time_unix_nano)
        twin, _ = made.get(key, (None, tags))
        if not _has_sum(point) or (twin is not None and not _are_alike(twin, point)):
            key = (key[0], -1 - number)  # a time that nothing else has
            twin = None
        made[key] = (point if twin is None else _added(twin, point)), tags
    return [point for point, _ in made.values()], TagColumn(tags for _, tags in made.values())


def _has_sum(point: Any) -> bool:
    value = point.value if isinstance(point, NumberDataPoint) else point.sum
    return isinstance(value, int | float) and is_finite(value)


def _are_alike(one: Any, other: Any) -> bool:
    if not isinstance(one, HistogramDataPoint):
        return True
    return (one.explicit_bounds, len(one.bucket_counts)) == (
        other.explicit_bounds,
        len(other.bucket_counts),
    )


def _added(one: Any, other: Any) -> Any:
    """Return the sum of two points."""
    starts_ns = [one.start_time_unix_nano, other.start_time_unix_nano]
    common: dict[str, Any] = {
        "start_time_unix_nano": None if None in starts_ns else min(starts_ns),
        "exemplars": [*one.exemplars, *other.exemplars],
    }
    if isinstance(one, NumberDataPoint):
        return replace(one, value=one.value + other.value, **common)
    common["count"] = one.count + other.count
    common["sum"] = one.sum + other.sum
    # A view can leave them unrecorded.
    common["min"] = min(filter(_is_number, (one.min, other.min)), default=None)
    common["max"] = max(filter(_is_number, (one.max, other.max)), default=None)
    if isinstance(one, HistogramDataPoint):
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


def _is_number(value: float | None) -> bool:
    return value is not None and is_finite(value)


def _common_scale(sides: Sequence[_Side]) -> int:
    """Return the finest scale that both can be brought to, and at which they are few buckets.

    The SDK keeps a single value at scale 20, where two of them are millions of buckets apart.
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
    """Add up buckets of exponential histograms at a scale that is no finer than theirs.

    One step down halves an index, rounded down: two neighbours become one bucket.
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

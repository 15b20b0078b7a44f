"""Data points of one metric that tags cannot tell apart, added up to one.

To the SDK `200`, `"200"` and `HTTPStatus.OK` are three series, and an empty text is not an absent
one. Tags are texts, so to InfluxDB they are one series, which has one value at a time; the second
point would be lost. Sums and histograms are added up as where a view leaves out the attribute, and
of gauges the newest value holds.

Semantics: https://opentelemetry.io/docs/specs/otel/metrics/data-model/, "Spatial reaggregation".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    NumberDataPoint,
)

from otel_cbtop_exporter.tag_set import TagColumn, TagSet

__all__ = ["add_up", "has_twins"]


def has_twins(tag_sets: Sequence[TagSet]) -> bool:
    """Whether two of them are equal."""
    return len({bytes(tags.json) for tags in tag_sets}) < len(tag_sets)


def add_up(
    points: Sequence[Any], tag_sets: TagColumn, *, newest: bool
) -> tuple[Sequence[Any], TagColumn]:
    """Return one point for each tag set and time, and the tags of each.

    Args:
        points: Of one metric.
        tag_sets: Of each point.
        newest: Whether the last one holds, as of gauges, in place of the sum.
    """
    made: dict[tuple[bytes, int], tuple[Any, TagSet]] = {}
    for number, (point, tags) in enumerate(zip(points, tag_sets, strict=True)):
        key = (bytes(tags.json), point.time_unix_nano)
        twin, _ = made.get(key, (None, tags))
        if twin is None or newest:
            made[key] = point, tags
        elif (both := _added(twin, point)) is not None:
            made[key] = both, tags
        else:  # whoever cannot carry both says so
            made[key[0], -1 - number] = point, tags
    return [point for point, _ in made.values()], TagColumn(tags for _, tags in made.values())


def _added(one: Any, other: Any) -> Any:
    """Return the sum of two points; None if they have none."""
    common: dict[str, Any] = {"exemplars": [*one.exemplars, *other.exemplars]}
    starts_ns = [one.start_time_unix_nano, other.start_time_unix_nano]
    if None not in starts_ns:
        common["start_time_unix_nano"] = min(starts_ns)
    if isinstance(one, NumberDataPoint):
        return replace(one, value=one.value + other.value, **common)
    common["count"] = one.count + other.count
    common["sum"] = one.sum + other.sum
    # A view can leave them unrecorded.
    least, most = [one.min, other.min], [one.max, other.max]
    common["min"] = min((value for value in least if value is not None), default=None)
    common["max"] = max((value for value in most if value is not None), default=None)
    if isinstance(one, HistogramDataPoint):
        if one.explicit_bounds != other.explicit_bounds:
            return None
        counts = [a + b for a, b in zip(one.bucket_counts, other.bucket_counts, strict=True)]
        return replace(one, bucket_counts=counts, **common)
    scale = min(one.scale, other.scale)
    return replace(
        one,
        scale=scale,
        zero_count=one.zero_count + other.zero_count,
        positive=_buckets_at(scale, (one.scale, one.positive), (other.scale, other.positive)),
        negative=_buckets_at(scale, (one.scale, one.negative), (other.scale, other.negative)),
        **common,
    )


def _buckets_at(scale: int, *parts: tuple[int, Any]) -> Any:
    """Add up buckets of exponential histograms, each with its scale, at a coarser one.

    One step down halves an index, rounded down: two neighbours become one bucket.
    """
    counts = Counter[int]()
    for finer, buckets in parts:
        for index, count in enumerate(buckets.bucket_counts, buckets.offset):
            if count:
                counts[index >> (finer - scale)] += count
    first, last = min(counts, default=0), max(counts, default=-1)
    return replace(
        parts[0][1],
        offset=first,
        bucket_counts=[counts[index] for index in range(first, last + 1)],
    )

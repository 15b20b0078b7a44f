"""Exponential histograms as fields: sparse counts by upper bound, at a common scale."""

from __future__ import annotations

from opentelemetry.sdk.metrics.export import ExponentialHistogramDataPoint

from otel_cbtop_exporter.mapping.metric_series import bound_text

__all__ = ["exponential_fields"]

# The scale at which exponential buckets become fields: 4 buckets per power of two. Scales nest
# exactly, so the buckets of a finer scale add up to those of this one.
_FIELD_SCALE = 2


def exponential_fields(point: ExponentialHistogramDataPoint) -> dict[str, int]:
    """Return counts as `in_<upper bound>`, sparse and not cumulative, from low bounds to high.

    Bucket i of scale s holds the values in (b**i, b**(i+1)] with b = 2 ** 2**-s. The lower bound of
    a bucket has a field as well, with 0 unless another bucket ends there: otherwise a query would
    take the gap below a bucket for a part of it.
    """
    scale = min(point.scale, _FIELD_SCALE)
    shift = point.scale - scale
    counts: dict[str, int] = {}

    def add(lower: float, upper: float, count: int) -> None:
        # `+ 0.0`: the bound below the smallest negative float is -0.0.
        below, name = (f"in_{bound_text(bound + 0.0)}" for bound in (lower, upper))
        counts.setdefault(below, 0)
        counts[name] = counts.get(name, 0) + count

    for index in range(len(point.negative.bucket_counts) - 1, -1, -1):
        if count := point.negative.bucket_counts[index]:
            at = (point.negative.offset + index) >> shift
            add(-_power(scale, at + 1), -_power(scale, at), count)
    if point.zero_count:
        add(0.0, 0.0, point.zero_count)
    for index, count in enumerate(point.positive.bucket_counts):
        if count:
            at = (point.positive.offset + index) >> shift
            add(_power(scale, at), _power(scale, at + 1), count)
    return counts


def _power(scale: int, index: int) -> float:
    try:
        return float(2.0 ** (index * 2.0**-scale))
    except OverflowError:
        return float("inf")

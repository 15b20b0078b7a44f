"""What a mapper of metrics keeps: the metrics of a scope, and the series of a metric.

Here is what is the same in every collection, so that a warm data point costs almost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Metric,
    Sum,
)

from otel_cbtop_exporter._sdk import attribute_map
from otel_cbtop_exporter.events import SCHEMA_VERSION, Event, FieldValue, MetricInfo, TagSet
from otel_cbtop_exporter.mapping.attributes import (
    MAX_CACHED_TAG_SETS,
    Kept,
    Redaction,
    TagCache,
    tag_text,
)

__all__ = ["MetricScope", "MetricSeries", "bound_text"]

# A metric named like one of these would mix with spans or logs.
_OUR_MEASUREMENTS = frozenset({"spans", "span_events", "span_links", "logs", "exemplars"})

_TEMPORALITY: dict[Any, Literal["delta", "cumulative"]] = {
    AggregationTemporality.DELTA: "delta",
    AggregationTemporality.CUMULATIVE: "cumulative",
}

_TYPES: dict[type, Literal["sum", "gauge", "histogram", "exponential_histogram"]] = {
    Sum: "sum",
    Gauge: "gauge",
    Histogram: "histogram",
    ExponentialHistogram: "exponential_histogram",
}


class MetricScope:
    """The metrics of one resource and scope."""

    def __init__(self, below: Mapping[str, str], above: Mapping[str, str], kept: Kept) -> None:
        self._below = below
        self._above = above
        self._kept = kept
        self._metrics: dict[tuple[Any, ...], MetricSeries] = {}

    def series_of(self, metric: Metric) -> MetricSeries:
        """Return what is kept of a metric, made at first sight."""
        data = metric.data
        temporality = getattr(data, "aggregation_temporality", None)
        monotonic = getattr(data, "is_monotonic", None)
        key = (metric.name, type(data), temporality, monotonic, metric.unit, metric.description)
        series = self._metrics.get(key)
        if series is None:
            if len(self._metrics) >= MAX_CACHED_TAG_SETS // 16:
                self._metrics.clear()
            info = MetricInfo(
                _TYPES.get(type(data), "gauge"),
                metric.unit or None,
                _TEMPORALITY.get(temporality),
                monotonic,
                metric.description or None,
            )
            series = self._metrics[key] = MetricSeries(
                metric.name, info, self._below, self._above, self._kept
            )
        return series


class MetricSeries:
    """The series of one metric, and what all their points have in common."""

    def __init__(
        self,
        name: str,
        info: MetricInfo,
        below: Mapping[str, str],
        above: Mapping[str, str],
        kept: Kept,
    ) -> None:
        self.name = name
        self.info = info
        self._measurement = name + "_" if name in _OUR_MEASUREMENTS else name
        self._below = below
        self._above = above
        self._tags: TagCache[int, tuple[Any, TagSet]] = TagCache(kept)
        self._bounds: tuple[Sequence[float], tuple[str, ...]] = ((), ("count", "le_inf"))

    def tags(self, attributes: Any, redaction: Redaction) -> TagSet:
        """Return the tags of the series with these attributes."""
        # The SDK keeps one attributes object per series over collections. The entry holds it,
        # so that its id cannot come to mean another one.
        known = self._tags.get(id(attributes))
        if known is not None and known[0] is attributes:
            return known[1]
        texts = {
            key: tag_text(value)
            for key, value in redaction.apply(attribute_map(attributes)).items()
        }
        tags = TagSet({**self._below, **texts, **self._above})
        self._tags.keep(id(attributes), (attributes, tags))
        return tags

    def exemplar_tags(self, tags: TagSet) -> TagSet:
        """Return the tags of a series' exemplars."""
        made: TagSet | None = tags.rendered.get("exemplar")
        if made is None:
            made = tags.rendered["exemplar"] = TagSet({**tags, "metric.name": self.name})
        return made

    def bound_names(self, bounds: Sequence[float]) -> tuple[str, ...]:
        """Return `count`, then the field of each bucket: `le_<upper bound>`, and `le_inf`."""
        known, names = self._bounds
        if bounds is not known and bounds != known:
            names = ("count", *(f"le_{bound_text(bound)}" for bound in bounds), "le_inf")
            self._bounds = (bounds, names)
        return names

    def event(
        self,
        tags: TagSet,
        fields: dict[str, FieldValue],
        time_ns: int,
        trace_id: str | None,
        info: MetricInfo,
    ) -> Event:
        """Return a data point as an event; `info` is the series' own, or the point's."""
        return Event(
            self._measurement,
            tags,
            fields,
            time_ns,
            SCHEMA_VERSION,
            trace_id,
            "metric",
            None,
            info,
        )


def bound_text(bound: float) -> str:
    """Return a bucket's bound as field names spell it."""
    return repr(float(bound)).removesuffix(".0")

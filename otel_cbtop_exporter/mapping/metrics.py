"""Metric data points and their exemplars as events.

Semantics: https://opentelemetry.io/docs/specs/otel/metrics/data-model/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    Sum,
)

from otel_cbtop_exporter._sdk import attribute_map
from otel_cbtop_exporter.events import (
    SCHEMA_VERSION,
    Buckets,
    Event,
    FieldValue,
    MetricInfo,
    TagSet,
)
from otel_cbtop_exporter.mapping.attributes import (
    MAX_CACHED_TAG_SETS,
    Loss,
    Redaction,
    ScopeCache,
    hex_span_id,
    hex_trace_id,
    is_finite,
    tag_text,
)

__all__ = ["MetricMapper"]

# A metric named like one of these would mix with spans or logs.
_OUR_MEASUREMENTS = frozenset({"spans", "span_events", "span_links", "logs", "exemplars"})

# Scale at which exponential buckets become fields: 4 buckets to a power of two. Scales nest
# exactly, so points of finer scales add up in it.
_FIELD_SCALE = 2

_TEMPORALITY: dict[Any, Literal["delta", "cumulative"]] = {
    AggregationTemporality.DELTA: "delta",
    AggregationTemporality.CUMULATIVE: "cumulative",
}


class MetricMapper:
    """Maps metrics to events; safe to share between threads.

    Args:
        resource_tags: Globs of the resource attributes that become tags.
        exemplars: Whose exemplars become events.
        redact: Globs of attribute keys whose values are replaced.
        on_loss: Told of what no event can carry.
    """

    def __init__(
        self,
        resource_tags: Sequence[str],
        exemplars: Literal["histograms", "all", "none"],
        redact: Sequence[str],
        on_loss: Loss,
    ) -> None:
        self._redaction = Redaction(redact)
        self._scopes = ScopeCache(resource_tags, self._redaction, _Scope)
        self._of_histograms = exemplars != "none"
        self._of_numbers = exemplars == "all"
        self._on_loss = on_loss

    def map(self, batch: Sequence[ResourceMetrics]) -> list[Event]:
        """Return the event of each data point, followed by those of its exemplars."""
        events: list[Event] = []
        for resource_metrics in batch:
            for scope_metrics in resource_metrics.scope_metrics:
                scope = self._scopes.of(resource_metrics.resource, scope_metrics.scope)
                for metric in scope_metrics.metrics:
                    self._map_metric(scope, metric, events)
        return events

    def _map_metric(self, scope: _Scope, metric: Metric, events: list[Event]) -> None:
        data = metric.data
        series = scope.series_of(metric)
        if isinstance(data, Sum | Gauge):
            self._map_numbers(series, data.data_points, events)
        elif isinstance(data, Histogram):
            self._map_histograms(series, data.data_points, events)
        elif isinstance(data, ExponentialHistogram):
            self._map_exponential(series, data.data_points, events)
        else:
            # A kind that a later SDK invents: say so, and lose nothing else.
            points = len(getattr(data, "data_points", ())) or 1
            self._on_loss("unknown_metric_type", metric.name, points)

    def _map_numbers(
        self, series: _Series, points: Sequence[NumberDataPoint], events: list[Event]
    ) -> None:
        is_sum = series.info.type == "sum"
        for point in points:
            value = _number(point.value)
            if value is None:
                self._on_loss("non_finite", series.name, 1)
                continue
            tags = series.tags(point.attributes, self._redaction)
            fields: dict[str, FieldValue] = (
                {"start_time_ns": point.start_time_unix_nano, "value": value}
                if is_sum
                else {"value": value}
            )
            trace_id = None
            exemplars: list[Event] = []
            if self._of_numbers and point.exemplars:
                newest = max(point.exemplars, key=lambda exemplar: exemplar.time_unix_nano)
                exemplars = self._map_exemplars(series, tags, (newest,))
                trace_id = exemplars[0].correlation_id if exemplars else None
            events.append(series.event(tags, fields, point.time_unix_nano, trace_id))
            events += exemplars

    def _map_histograms(
        self, series: _Series, points: Sequence[HistogramDataPoint], events: list[Event]
    ) -> None:
        for point in points:
            tags = series.tags(point.attributes, self._redaction)
            fields: dict[str, FieldValue] = {"count": point.count}
            names = series.bound_names(point.explicit_bounds)
            fields.update(zip(names, accumulate(point.bucket_counts), strict=True))
            self._finish_histogram(series, point, fields, tags, series.info, events)

    def _map_exponential(
        self,
        series: _Series,
        points: Sequence[ExponentialHistogramDataPoint],
        events: list[Event],
    ) -> None:
        for point in points:
            tags = series.tags(point.attributes, self._redaction)
            fields: dict[str, FieldValue] = {
                "count": point.count,
                **_exponential_fields(point),
                "scale": point.scale,
                "zero_count": point.zero_count,
            }
            info = MetricInfo(
                series.info.type,
                series.info.unit,
                series.info.temporality,
                None,
                series.info.description,
                point.scale,
                Buckets(point.positive.offset, list(point.positive.bucket_counts)),
                Buckets(point.negative.offset, list(point.negative.bucket_counts)),
            )
            self._finish_histogram(series, point, fields, tags, info, events)

    def _finish_histogram(
        self,
        series: _Series,
        point: HistogramDataPoint | ExponentialHistogramDataPoint,
        fields: dict[str, FieldValue],
        tags: TagSet,
        info: MetricInfo,
        events: list[Event],
    ) -> None:
        # An unrecorded min or max is None or an infinity, and its absence is no loss.
        if (least := _number(point.min)) is not None:
            fields["min"] = least
        if (most := _number(point.max)) is not None:
            fields["max"] = most
        fields["start_time_ns"] = point.start_time_unix_nano
        total = _number(point.sum)
        if total is None:
            self._on_loss("non_finite", series.name, 0)
        else:
            fields["sum"] = total
        trace_id = None
        exemplars: list[Event] = []
        if self._of_histograms and point.exemplars:
            exemplars = self._map_exemplars(series, tags, point.exemplars)
            traced = [event for event in exemplars if event.correlation_id]
            if traced:
                trace_id = max(traced, key=lambda event: event.fields["value"]).correlation_id
        events.append(series.event(tags, fields, point.time_unix_nano, trace_id, info))
        events += exemplars

    def _map_exemplars(
        self, series: _Series, tags: TagSet, exemplars: Sequence[Any]
    ) -> list[Event]:
        events = []
        for exemplar in exemplars:
            value = _number(exemplar.value)
            if value is None:
                self._on_loss("non_finite", series.name, 1)
                continue
            fields: dict[str, FieldValue] = {"value": value}
            if exemplar.span_id:
                fields["span_id"] = hex_span_id(exemplar.span_id)
            attributes = self._redaction.apply(attribute_map(exemplar.filtered_attributes))
            events.append(
                Event(
                    "exemplars",
                    series.exemplar_tags(tags),
                    fields,
                    exemplar.time_unix_nano,
                    SCHEMA_VERSION,
                    hex_trace_id(exemplar.trace_id) if exemplar.trace_id else None,
                    "exemplar",
                    attributes or None,
                )
            )
        return events


class _Scope:
    """The metrics of one resource and scope."""

    def __init__(self, below: Mapping[str, str], above: Mapping[str, str]) -> None:
        self._below = below
        self._above = above
        self._metrics: dict[tuple[Any, ...], _Series] = {}

    def series_of(self, metric: Metric) -> _Series:
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
            series = self._metrics[key] = _Series(metric.name, info, self._below, self._above)
        return series


_TYPES: dict[type, Literal["sum", "gauge", "histogram", "exponential_histogram"]] = {
    Sum: "sum",
    Gauge: "gauge",
    Histogram: "histogram",
    ExponentialHistogram: "exponential_histogram",
}


class _Series:
    """The series of one metric, and what all their points have in common."""

    def __init__(
        self, name: str, info: MetricInfo, below: Mapping[str, str], above: Mapping[str, str]
    ) -> None:
        self.name = name
        self.info = info
        self._measurement = name + "_" if name in _OUR_MEASUREMENTS else name
        self._below = below
        self._above = above
        self._tags: dict[int, tuple[Any, TagSet]] = {}
        self._bounds: tuple[Sequence[float], tuple[str, ...]] = ((), ("le_inf",))

    def tags(self, attributes: Any, redaction: Redaction) -> TagSet:
        # The SDK keeps one attributes object per series over collections. The entry holds it,
        # so that its id cannot come to mean another one.
        known = self._tags.get(id(attributes))
        if known is not None and known[0] is attributes:
            return known[1]
        if len(self._tags) >= MAX_CACHED_TAG_SETS:
            self._tags.clear()
        texts = {
            key: tag_text(value)
            for key, value in redaction.apply(attribute_map(attributes)).items()
        }
        tags = TagSet({**self._below, **texts, **self._above})
        self._tags[id(attributes)] = (attributes, tags)
        return tags

    def exemplar_tags(self, tags: TagSet) -> TagSet:
        made: TagSet | None = tags.rendered.get("exemplar")
        if made is None:
            made = tags.rendered["exemplar"] = TagSet({**tags, "metric.name": self.name})
        return made

    def bound_names(self, bounds: Sequence[float]) -> tuple[str, ...]:
        """Return the field of each bucket: `le_<upper bound>`, the last one `le_inf`."""
        known, names = self._bounds
        if bounds is not known and bounds != known:
            names = (*(f"le_{_bound_text(bound)}" for bound in bounds), "le_inf")
            self._bounds = (bounds, names)
        return names

    def event(
        self,
        tags: TagSet,
        fields: dict[str, FieldValue],
        time_ns: int,
        trace_id: str | None,
        info: MetricInfo | None = None,
    ) -> Event:
        return Event(
            self._measurement,
            tags,
            fields,
            time_ns,
            SCHEMA_VERSION,
            trace_id,
            "metric",
            None,
            info or self.info,
        )


def _number(value: Any) -> float | None:
    """Return a finite int or float, or None; foreign number types become float."""
    kind = type(value)
    if kind is not int and kind is not float:
        try:
            value = int(value) if isinstance(value, int) else float(value)
        except (TypeError, ValueError, OverflowError):
            return None
    return value if is_finite(value) else None


def _bound_text(bound: float) -> str:
    return repr(float(bound)).removesuffix(".0")


def _exponential_fields(point: ExponentialHistogramDataPoint) -> dict[str, int]:
    """Return `in_<upper bound>` counts, sparse and not cumulative, from low bounds to high.

    Bucket i of scale s holds (b**i, b**(i+1)] with b = 2 ** 2**-s.
    """
    scale = min(point.scale, _FIELD_SCALE)
    shift = point.scale - scale
    counts: dict[str, int] = {}

    def add(bound: float, count: int) -> None:
        name = f"in_{_bound_text(bound)}"
        counts[name] = counts.get(name, 0) + count

    for index in range(len(point.negative.bucket_counts) - 1, -1, -1):
        if count := point.negative.bucket_counts[index]:
            add(-_power(scale, (point.negative.offset + index) >> shift), count)
    if point.zero_count:
        add(0.0, point.zero_count)
    for index, count in enumerate(point.positive.bucket_counts):
        if count:
            add(_power(scale, ((point.positive.offset + index) >> shift) + 1), count)
    return counts


def _power(scale: int, index: int) -> float:
    try:
        return float(2.0 ** (index * 2.0**-scale))
    except OverflowError:
        return float("inf")

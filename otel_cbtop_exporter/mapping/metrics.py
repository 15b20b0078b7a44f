"""Metric data points and their exemplars as events.

Semantics: https://opentelemetry.io/docs/specs/otel/metrics/data-model/
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

from opentelemetry.sdk.metrics.export import (
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
    Loss,
    Redaction,
    ScopeCache,
    hex_span_id,
    hex_trace_id,
    is_finite,
)
from otel_cbtop_exporter.mapping.exponential import exponential_fields
from otel_cbtop_exporter.mapping.metric_series import MetricScope, MetricSeries
from otel_cbtop_exporter.tally import Tally

__all__ = ["MetricMapper"]


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
        self._scopes = ScopeCache(resource_tags, self._redaction, MetricScope)
        self._of_histograms = exemplars != "none"
        self._of_numbers = exemplars == "all"
        self._on_loss = on_loss

    def map(self, batch: Sequence[ResourceMetrics]) -> list[Event]:
        """Return the event of each data point, followed by those of its exemplars."""
        events: list[Event] = []
        self._scopes.make_room(_count_points(batch))
        for resource_metrics in batch:
            for scope_metrics in resource_metrics.scope_metrics:
                scope = self._scopes.of(resource_metrics.resource, scope_metrics.scope)
                for metric in scope_metrics.metrics:
                    self._map_metric(scope, metric, events)
        return events

    def _map_metric(self, scope: MetricScope, metric: Metric, events: list[Event]) -> None:
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
            self._on_loss("unknown_metric_type", metric.name, Tally(points, data_points=points))

    def _map_numbers(
        self, series: MetricSeries, points: Sequence[NumberDataPoint], events: list[Event]
    ) -> None:
        is_sum = series.info.type == "sum"
        for point in points:
            value = point.value if type(point.value) is int else _number(point.value)
            if value is None:
                self._on_loss("non_finite", series.name, Tally(1, data_points=1))
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
            events.append(series.event(tags, fields, point.time_unix_nano, trace_id, series.info))
            if exemplars:
                events += exemplars

    def _map_histograms(
        self, series: MetricSeries, points: Sequence[HistogramDataPoint], events: list[Event]
    ) -> None:
        for point in points:
            tags = series.tags(point.attributes, self._redaction)
            names = series.bound_names(point.explicit_bounds)
            fields: dict[str, FieldValue] = dict(
                zip(names, (point.count, *accumulate(point.bucket_counts)), strict=True)
            )
            self._finish_histogram(series, point, fields, tags, series.info, events)

    def _map_exponential(
        self,
        series: MetricSeries,
        points: Sequence[ExponentialHistogramDataPoint],
        events: list[Event],
    ) -> None:
        for point in points:
            tags = series.tags(point.attributes, self._redaction)
            fields: dict[str, FieldValue] = {
                "count": point.count,
                **exponential_fields(point),
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
        series: MetricSeries,
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
            self._on_loss("non_finite", series.name, Tally())
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
        if exemplars:
            events += exemplars

    def _map_exemplars(
        self, series: MetricSeries, tags: TagSet, exemplars: Sequence[Any]
    ) -> list[Event]:
        events = []
        for exemplar in exemplars:
            value = _number(exemplar.value)
            if value is None:
                self._on_loss("non_finite", series.name, Tally(1))
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


def _count_points(batch: Sequence[ResourceMetrics]) -> int:
    return sum(
        len(getattr(metric.data, "data_points", ()))
        for resource_metrics in batch
        for scope_metrics in resource_metrics.scope_metrics
        for metric in scope_metrics.metrics
    )


def _number(value: Any) -> float | None:
    """Return a finite int or float, or None; foreign number types become float."""
    kind = type(value)
    if kind is float:
        return value if value - value == 0.0 else None
    if kind is not int:
        try:
            value = int(value) if isinstance(value, int) else float(value)
        except (TypeError, ValueError, OverflowError):
            return None
    return value if is_finite(value) else None

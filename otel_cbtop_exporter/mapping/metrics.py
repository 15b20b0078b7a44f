"""Metric data points and their exemplars as events.

Semantics: https://opentelemetry.io/docs/specs/otel/metrics/data-model/
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, repeat
from operator import is_
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
from otel_cbtop_exporter.event_table import INT64_MAX, MAX_NUMBER, MIN_NUMBER, Events, Tables
from otel_cbtop_exporter.events import SCHEMA_VERSION, Buckets, Event, FieldValue, MetricInfo
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
from otel_cbtop_exporter.tag_set import TagSet
from otel_cbtop_exporter.tally import Tally

__all__ = ["MetricMapper"]

_GAUGE = ("value",)
_SUM = ("start_time_ns", "value")


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

    def map(self, batch: Sequence[ResourceMetrics]) -> Events:
        """Return the events of data points, and of their exemplars."""
        tables = Tables()
        self._scopes.make_room(_count_points(batch))
        for resource_metrics in batch:
            for scope_metrics in resource_metrics.scope_metrics:
                scope = self._scopes.of(resource_metrics.resource, scope_metrics.scope)
                for metric in scope_metrics.metrics:
                    self._map_metric(scope, metric, tables)
        return tables.events()

    def _map_metric(self, scope: MetricScope, metric: Metric, tables: Tables) -> None:
        data = metric.data
        series = scope.series_of(metric)
        if isinstance(data, Sum | Gauge):
            self._map_numbers(series, data.data_points, tables)
        elif isinstance(data, Histogram):
            self._map_histograms(series, data.data_points, tables)
        elif isinstance(data, ExponentialHistogram):
            self._map_exponential(series, data.data_points, tables)
        else:
            # A kind that a later SDK invents: say so, and lose nothing else.
            points = len(getattr(data, "data_points", ())) or 1
            self._on_loss("unknown_metric_type", metric.name, Tally(points, data_points=points))

    def _map_numbers(
        self, series: MetricSeries, points: Sequence[NumberDataPoint], tables: Tables
    ) -> None:
        is_sum = series.info.type == "sum"
        tag_sets = series.tag_sets(points, self._redaction)
        if not (self._of_numbers and any(point.exemplars for point in points)):
            times_ns = [point.time_unix_nano for point in points]
            starts_ns = [point.start_time_unix_nano for point in points] if is_sum else times_ns
            values = [point.value for point in points]
            if _are_integers(times_ns) and _are_integers(starts_ns) and _are_numbers(values):
                table = series.table(tables, _SUM if is_sum else _GAUGE)
                own = map(table.fields_type, *((starts_ns, values) if is_sum else (values,)))
                series.fill(table, tag_sets, own, times_ns, repeat(None))
                return
        for tags, point in zip(tag_sets, points, strict=True):
            value = _number(point.value)
            if value is None:
                self._on_loss("non_finite", series.name, Tally(1, data_points=1))
                continue
            fields: dict[str, FieldValue] = (
                {"start_time_ns": point.start_time_unix_nano, "value": value}
                if is_sum
                else {"value": value}
            )
            trace_id = None
            if self._of_numbers and point.exemplars:
                newest = max(point.exemplars, key=lambda exemplar: exemplar.time_unix_nano)
                trace_id = self._map_exemplars(series, tags, (newest,), tables)
            tables.add(series.event(tags, fields, point.time_unix_nano, trace_id, series.info))

    def _map_histograms(
        self, series: MetricSeries, points: Sequence[HistogramDataPoint], tables: Tables
    ) -> None:
        tag_sets = series.tag_sets(points, self._redaction)
        # The sums of the buckets begin with a 0, in whose place the count goes.
        buckets = [list(accumulate(point.bucket_counts, initial=0)) for point in points]
        for counts, point in zip(buckets, points, strict=True):
            counts[0] = point.count
        bounds = points[0].explicit_bounds if points else ()
        names = series.bound_names(bounds)
        times_ns = [point.time_unix_nano for point in points]
        starts_ns = [point.start_time_unix_nano for point in points]
        least = [point.min for point in points]
        most = [point.max for point in points]
        totals = [point.sum for point in points]
        if (
            [point.explicit_bounds for point in points].count(bounds) == len(points)
            and {len(names), len(set(names)), *map(len, buckets)} == {len(names)}
            and _are_integers([counts[0] for counts in buckets])
            and _are_integers([counts[-1] for counts in buckets])
            and _are_integers(times_ns)
            and _are_integers(starts_ns)
            and _are_numbers([*least, *most, *totals])
        ):
            table = series.table(tables, (*names, "min", "max", "start_time_ns", "sum"))
            fields_type = table.fields_type
            trace_ids = self._map_all_exemplars(series, tag_sets, points, tables)
            own = [
                fields_type(*counts, low, high, start_ns, total)
                for counts, low, high, start_ns, total in zip(
                    buckets, least, most, starts_ns, totals, strict=True
                )
            ]
            series.fill(table, tag_sets, own, times_ns, trace_ids)
            return
        trace_ids = self._map_all_exemplars(series, tag_sets, points, tables)
        for tags, trace_id, counts, point in zip(tag_sets, trace_ids, buckets, points, strict=True):
            names = series.bound_names(point.explicit_bounds)
            fields: dict[str, FieldValue] = dict(zip(names, counts, strict=True))
            self._finish(series, point, fields)
            tables.add(series.event(tags, fields, point.time_unix_nano, trace_id, series.info))

    def _map_all_exemplars(
        self,
        series: MetricSeries,
        tag_sets: Sequence[TagSet],
        points: Sequence[Any],
        tables: Tables,
    ) -> Sequence[str | None]:
        """Map the exemplars of histograms; returns the trace id of each point."""
        if not (self._of_histograms and any(point.exemplars for point in points)):
            return [None] * len(points)
        return [
            self._map_exemplars(series, tags, point.exemplars, tables)
            for tags, point in zip(tag_sets, points, strict=True)
        ]

    def _map_exponential(
        self,
        series: MetricSeries,
        points: Sequence[ExponentialHistogramDataPoint],
        tables: Tables,
    ) -> None:
        tag_sets = series.tag_sets(points, self._redaction)
        trace_ids = self._map_all_exemplars(series, tag_sets, points, tables)
        for tags, trace_id, point in zip(tag_sets, trace_ids, points, strict=True):
            fields: dict[str, FieldValue] = {
                "count": point.count,
                **exponential_fields(point),
                "scale": point.scale,
                "zero_count": point.zero_count,
            }
            self._finish(series, point, fields)
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
            # Its buckets, and so its fields, are hardly those of another point.
            tables.add_loose(series.event(tags, fields, point.time_unix_nano, trace_id, info))

    def _finish(
        self,
        series: MetricSeries,
        point: HistogramDataPoint | ExponentialHistogramDataPoint,
        fields: dict[str, FieldValue],
    ) -> None:
        """Add what both kinds of histograms have, as far as it can be carried."""
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

    def _map_exemplars(
        self, series: MetricSeries, tags: TagSet, exemplars: Sequence[Any], tables: Tables
    ) -> str | None:
        """Map exemplars; returns the trace id of the largest that has one."""
        largest: float | None = None
        found: str | None = None
        for exemplar in exemplars:
            value = _number(exemplar.value)
            if value is None:
                self._on_loss("non_finite", series.name, Tally(1))
                continue
            trace_id = hex_trace_id(exemplar.trace_id) if exemplar.trace_id else None
            if trace_id and (largest is None or value > largest):
                largest, found = value, trace_id
            fields: dict[str, FieldValue] = {"value": value}
            if exemplar.span_id:
                fields["span_id"] = hex_span_id(exemplar.span_id)
            tables.add(
                Event(
                    "exemplars",
                    series.exemplar_tags(tags),
                    fields,
                    exemplar.time_unix_nano,
                    SCHEMA_VERSION,
                    trace_id,
                    "exemplar",
                    self._redaction.apply(attribute_map(exemplar.filtered_attributes)) or None,
                )
            )
        return found


def _count_points(batch: Sequence[ResourceMetrics]) -> int:
    return sum(
        len(getattr(metric.data, "data_points", ()))
        for resource_metrics in batch
        for scope_metrics in resource_metrics.scope_metrics
        for metric in scope_metrics.metrics
    )


def _are_integers(numbers: Sequence[Any]) -> bool:
    """Whether there are some, and all are integers of 63 bits."""
    # The times of a collection are all the same object.
    if numbers and all(map(is_, numbers, repeat(numbers[0]))):
        numbers = numbers[:1]
    if not numbers or not {int}.issuperset(map(type, numbers)):
        return False
    return bool(min(numbers) >= 0 and max(numbers) <= INT64_MAX)


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are finite numbers of Python's own types, and of a size that a float holds."""
    if not values or not {int, float}.issuperset(map(type, values)):
        return False
    # One NaN makes the sum NaN, which is in no range.
    least, most, total = min(values), max(values), sum(values)
    return bool(least >= MIN_NUMBER and most <= MAX_NUMBER and total < math.inf)


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

"""Metric data points and their exemplars as events.

Semantics: https://opentelemetry.io/docs/specs/otel/metrics/data-model/
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, compress
from operator import attrgetter
from typing import Any, Literal, NamedTuple

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
from otel_cbtop_exporter.event_batch import Events, Tables
from otel_cbtop_exporter.events import SCHEMA_VERSION, Buckets, Event, FieldValue, MetricInfo
from otel_cbtop_exporter.mapping.attributes import (
    Loss,
    Redaction,
    ScopeCache,
    finite_number,
    hex_span_id,
    hex_trace_id,
)
from otel_cbtop_exporter.mapping.exponential import exponential_fields
from otel_cbtop_exporter.mapping.metric_columns import are_integers, are_numbers, histogram_columns
from otel_cbtop_exporter.mapping.metric_series import MetricScope, MetricSeries
from otel_cbtop_exporter.mapping.metric_twins import add_up
from otel_cbtop_exporter.tag_set import TagColumn, TagSet
from otel_cbtop_exporter.tally import Tally

__all__ = ["MetricMapper"]

_KINDS = (Sum, Gauge, Histogram, ExponentialHistogram)

_by_time = attrgetter("time_unix_nano")


class _Made(NamedTuple):
    """What a batch is mapped to: data points, their exemplars, and losses.

    Losses are reported only once the whole batch is mapped. A batch in which something raises is
    mapped again in pieces, and would otherwise report them twice.
    """

    points: Tables
    exemplars: Tables
    losses: list[tuple[str, str, Tally]]


class MetricMapper:
    """Maps metrics to events; safe to share between threads.

    Args:
        resource_tags: Globs of the resource attributes that become tags.
        exemplars: The metrics whose exemplars become events.
        redact: Globs of attribute keys whose values are replaced.
        on_loss: Called for everything that no event can carry.
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
        """Return the events of all data points, then those of their exemplars."""
        made = _Made(Tables(), Tables(), [])
        self._scopes.make_room(_count_points(batch))
        for resource_metrics in batch:
            for scope_metrics in resource_metrics.scope_metrics:
                scope = self._scopes.of(resource_metrics.resource, scope_metrics.scope)
                for metric in scope_metrics.metrics:
                    self._map_metric(scope, metric, made)
        for loss in made.losses:
            self._on_loss(*loss)
        return Events([*made.points.events().parts, *made.exemplars.events().parts])

    def _map_metric(self, scope: MetricScope, metric: Metric, made: _Made) -> None:
        data = metric.data
        if not isinstance(data, _KINDS):
            # A kind from a later SDK: report its points as lost, and keep all others.
            count = len(getattr(data, "data_points", ())) or 1
            lost = Tally(count, data_points=count)
            made.losses.append(("unknown_metric_type", metric.name, lost))
            return
        series = scope.series_of(metric)
        points: Sequence[Any] = data.data_points
        tag_sets, have_twins = series.tag_sets(points, self._redaction)
        if have_twins:
            points, tag_sets = add_up(points, tag_sets)
        if isinstance(data, Histogram):
            self._map_histograms(series, points, tag_sets, made)
        elif isinstance(data, ExponentialHistogram):
            self._map_exponential(series, points, tag_sets, made)
        else:
            self._map_numbers(series, points, tag_sets, made)

    def _map_numbers(
        self,
        series: MetricSeries,
        points: Sequence[NumberDataPoint],
        tag_sets: TagColumn,
        made: _Made,
    ) -> None:
        values = [point.value for point in points]
        plain = are_numbers(values)
        if not plain:
            numbers: list[Any] = list(map(finite_number, values))
            there = [number is not None for number in numbers]
            if lost := there.count(False):
                made.losses.append(("non_finite", series.name, Tally(lost, data_points=lost)))
            points = list(compress(points, there))
            tag_sets = TagColumn(compress(tag_sets, there))
            values = list(compress(numbers, there))
            plain = are_numbers(values)
        columns: dict[str, Sequence[Any]] = {"value": values}
        if series.info.type == "sum":
            starts_ns = [point.start_time_unix_nano for point in points]
            columns = {"start_time_ns": starts_ns, "value": values}
            plain = plain and are_integers(starts_ns)
        # The newest exemplar shows where the value of a sum or a gauge comes from.
        newest: Sequence[Sequence[Any]] = ()
        if self._of_numbers:
            newest = [[max(of, key=_by_time)] if (of := one.exemplars) else [] for one in points]
        trace_ids = self._map_all_exemplars(series, tag_sets, newest, made)
        times_ns = [point.time_unix_nano for point in points]
        table = series.table(tag_sets, columns, times_ns, trace_ids)
        made.points.add_table(table, plain=plain and are_integers(times_ns))

    def _map_histograms(
        self,
        series: MetricSeries,
        points: Sequence[HistogramDataPoint],
        tag_sets: TagColumn,
        made: _Made,
    ) -> None:
        exemplars = [point.exemplars for point in points] if self._of_histograms else ()
        trace_ids = self._map_all_exemplars(series, tag_sets, exemplars, made)
        columns = histogram_columns(series, points)
        if columns is not None:
            times_ns = [point.time_unix_nano for point in points]
            table = series.table(tag_sets, columns, times_ns, trace_ids)
            made.points.add_table(table, plain=are_integers(times_ns))
            return
        for tags, trace_id, point in zip(
            tag_sets, trace_ids or [None] * len(points), points, strict=True
        ):
            names = series.bound_names(point.explicit_bounds)
            counts = (point.count, *accumulate(point.bucket_counts))
            fields: dict[str, FieldValue] = dict(zip(names, counts, strict=True))
            self._finish(series, point, fields, made)
            made.points.add_loose(
                series.event(tags, fields, point.time_unix_nano, trace_id, series.info)
            )

    def _map_all_exemplars(
        self,
        series: MetricSeries,
        tag_sets: Sequence[TagSet],
        exemplars: Sequence[Sequence[Any]],
        made: _Made,
    ) -> list[str | None] | None:
        """Map the exemplars of all points.

        Returns:
            A trace id or None for each point; None if no point has an exemplar.
        """
        if not any(exemplars):
            return None
        return [
            self._map_exemplars(series, tags, of_point, made)
            for tags, of_point in zip(tag_sets, exemplars, strict=True)
        ]

    def _map_exponential(
        self,
        series: MetricSeries,
        points: Sequence[ExponentialHistogramDataPoint],
        tag_sets: TagColumn,
        made: _Made,
    ) -> None:
        exemplars = [point.exemplars for point in points] if self._of_histograms else ()
        trace_ids = self._map_all_exemplars(series, tag_sets, exemplars, made)
        for tags, trace_id, point in zip(
            tag_sets, trace_ids or [None] * len(points), points, strict=True
        ):
            fields: dict[str, FieldValue] = {
                "count": point.count,
                **exponential_fields(point),
                "scale": point.scale,
                "zero_count": point.zero_count,
            }
            self._finish(series, point, fields, made)
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
            # Hardly any other point has the same buckets, and so the same fields.
            made.points.add_loose(series.event(tags, fields, point.time_unix_nano, trace_id, info))

    def _finish(
        self,
        series: MetricSeries,
        point: HistogramDataPoint | ExponentialHistogramDataPoint,
        fields: dict[str, FieldValue],
        made: _Made,
    ) -> None:
        """Add the fields that both kinds of histograms have, where their values are finite."""
        # An unrecorded min or max is None or infinite, and leaving it out is no loss.
        if (least := finite_number(point.min)) is not None:
            fields["min"] = least
        if (most := finite_number(point.max)) is not None:
            fields["max"] = most
        fields["start_time_ns"] = point.start_time_unix_nano
        total = finite_number(point.sum)
        if total is None:
            made.losses.append(("non_finite", series.name, Tally()))
        else:
            fields["sum"] = total

    def _map_exemplars(
        self, series: MetricSeries, tags: TagSet, exemplars: Sequence[Any], made: _Made
    ) -> str | None:
        """Map exemplars; return the trace id of the largest one that has a trace id."""
        largest: float | None = None
        found: str | None = None
        for exemplar in exemplars:
            value = finite_number(exemplar.value)
            if value is None:
                made.losses.append(("non_finite", series.name, Tally(1)))
                continue
            trace_id = hex_trace_id(exemplar.trace_id)
            if trace_id and (largest is None or value > largest):
                largest, found = value, trace_id
            fields: dict[str, FieldValue] = {"value": value}
            if exemplar.span_id:
                fields["span_id"] = hex_span_id(exemplar.span_id)
            made.exemplars.add(
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

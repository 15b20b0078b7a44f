"""What the metric mapper caches: the metrics of a scope, and the series of a metric.

These stay the same from one collection to the next, so a data point of a known series costs almost
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any, Literal, NamedTuple

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Metric,
    Sum,
)

from otel_cbtop_exporter._sdk import attribute_map
from otel_cbtop_exporter.event_table import EventTable
from otel_cbtop_exporter.events import SCHEMA_VERSION, Event, FieldValue, MetricInfo
from otel_cbtop_exporter.mapping.attributes import (
    MAX_CACHED_TAG_SETS,
    CacheBudget,
    Redaction,
    TagCache,
    tag_text,
)
from otel_cbtop_exporter.tag_set import TagColumn, TagKeys, TagSet

__all__ = ["MetricScope", "MetricSeries", "bound_text"]

# A metric with one of these names would be mixed up with spans or logs.
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


class _TagShape(NamedTuple):
    """How attributes with the same keys become tags.

    Attributes:
        keys: The keys of the tags, without empty ones.
        texts: The texts of the tags, in the order of the keys. Those of the resource and the scope
            are filled in.
        own: The positions that the attributes' own texts go to, and their keys.
    """

    keys: TagKeys
    texts: list[str]
    own: list[tuple[int, str]]


class _TagShapes:
    """The tag shapes for one resource and scope."""

    def __init__(self, resource_tags: Mapping[str, str], scope_tags: Mapping[str, str]) -> None:
        self._resource_tags = resource_tags
        self._scope_tags = scope_tags
        self._shapes: dict[tuple[str, ...], _TagShape] = {}

    def of(self, keys: tuple[str, ...]) -> _TagShape:
        """Return the tag shape of attributes with these keys."""
        shape = self._shapes.get(keys)
        if shape is None:
            if len(self._shapes) >= MAX_CACHED_TAG_SETS // 64:
                self._shapes.clear()
            # Keys may be members of a str Enum, which equal their texts.
            named = {str.__str__(key): "" for key in keys if isinstance(key, str) and key}
            known = {**self._resource_tags, **named, **self._scope_tags}
            ordered = tuple(sorted(known))
            own = [
                (position, key)
                for position, key in enumerate(ordered)
                if key in named and key not in self._scope_tags
            ]
            shape = _TagShape(TagKeys(ordered), [known[key] for key in ordered], own)
            self._shapes[keys] = shape
        return shape


class MetricScope:
    """The metrics of one resource and scope."""

    def __init__(
        self, resource_tags: Mapping[str, str], scope_tags: Mapping[str, str], budget: CacheBudget
    ) -> None:
        self._tag_shapes = _TagShapes(resource_tags, scope_tags)
        self._budget = budget
        self._metrics: dict[tuple[Any, ...], MetricSeries] = {}

    def series_of(self, metric: Metric) -> MetricSeries:
        """Return the series of a metric; make them on first use."""
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
                metric.name, info, self._tag_shapes, self._budget
            )
        return series


class MetricSeries:
    """The series of one metric, and what all their points have in common."""

    def __init__(
        self,
        name: str,
        info: MetricInfo,
        tag_shapes: _TagShapes,
        budget: CacheBudget,
    ) -> None:
        self.name = tag_text(name)
        self.info = info
        is_ours = self.name.rstrip("_") in _OUR_MEASUREMENTS
        self._measurement = self.name + "_" if is_ours else self.name
        self._tag_shapes = tag_shapes
        self._tags: TagCache[int, tuple[Any, TagSet]] = TagCache(budget)
        self._last: tuple[list[Any], TagColumn, bool] = ([], TagColumn(()), False)
        self._bounds: tuple[Sequence[float], tuple[str, ...]] = ((), ("count", "le_inf"))

    def tag_sets(self, points: Sequence[Any], redaction: Redaction) -> tuple[TagColumn, bool]:
        """Return the tags of each point, and whether points must be added up.

        They must if some have equal tags, except those of a gauge, which cannot be added up.
        """
        attributes = [point.attributes for point in points]
        known, tag_sets, have_twins = self._last
        # A collection often has the same series as the previous one.
        if len(known) != len(attributes) or not all(map(is_, known, attributes)):
            tag_sets = TagColumn(self._tags_of(one, redaction) for one in attributes)
            have_twins = self.info.type != "gauge" and len(set(tag_sets)) < len(tag_sets)
            self._last = attributes, tag_sets, have_twins
        return tag_sets, have_twins

    def _tags_of(self, attributes: Any, redaction: Redaction) -> TagSet:
        # The SDK keeps one attributes object per series across collections. The entry references
        # it, so that its id cannot be reused by another one.
        known = self._tags.get(id(attributes))
        if known is not None and known[0] is attributes:
            return known[1]
        # `apart`, or points of different series would become the same point.
        shown = redaction.apply(attribute_map(attributes), apart=True)
        shape = self._tag_shapes.of(tuple(shown))
        texts = shape.texts.copy()
        for position, key in shape.own:
            value = shown[key]
            texts[position] = value if type(value) is str else tag_text(value)
        tags = shape.keys.tag_set(texts)
        self._tags.keep(id(attributes), (attributes, tags))
        return tags

    def exemplar_tags(self, tags: TagSet) -> TagSet:
        """Return the tags of a series' exemplars."""
        slot = ("exemplar", self.name)
        made: TagSet | None = tags.rendered.get(slot)
        if made is None:
            made = tags.rendered[slot] = TagSet({**tags, "metric.name": self.name})
        return made

    def bound_names(self, bounds: Sequence[float]) -> tuple[str, ...]:
        """Return the field names: `count`, `le_<upper bound>` for each bucket, and `le_inf`."""
        known, names = self._bounds
        if bounds is not known and bounds != known:
            names = ("count", *(f"le_{bound_text(bound)}" for bound in bounds), "le_inf")
            self._bounds = (bounds, names)
        return names

    def table(
        self,
        tag_sets: TagColumn,
        columns: dict[str, Sequence[Any]],
        times_ns: list[int],
        trace_ids: Sequence[str | None] | None,
    ) -> EventTable:
        """Return a table of points that all have the same fields."""
        return EventTable(
            self._measurement,
            "metric",
            tuple(columns),
            tuple(columns.values()),
            tag_sets,
            times_ns,
            trace_ids,
            metric=self.info,
        )

    def event(
        self,
        tags: TagSet,
        fields: dict[str, FieldValue],
        time_ns: int,
        trace_id: str | None,
        info: MetricInfo,
    ) -> Event:
        """Return a data point as an event; `info` is that of the series, or the point's own."""
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
    """Return a bucket's bound as it is spelled in field names."""
    return repr(float(bound)).removesuffix(".0")

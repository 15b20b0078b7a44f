"""Spans, their events and their links as events.

Semantics: https://opentelemetry.io/docs/specs/otel/trace/sdk/ and, for dropped counts, the
mapping to non-OTLP formats.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from opentelemetry.sdk.trace import Event as SpanEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import DEFAULT_TRACE_STATE, Link, SpanKind
from opentelemetry.trace.status import StatusCode

from otel_cbtop_exporter._sdk import NONE_DROPPED, attribute_map, read_spans
from otel_cbtop_exporter.events import SCHEMA_VERSION, Event, FieldValue, TagSet
from otel_cbtop_exporter.mapping.attributes import (
    MAX_CACHED_TAG_SETS,
    Kept,
    Redaction,
    ScopeCache,
    TagCache,
    hex_span_id,
    hex_trace_id,
    tag_text,
)

__all__ = ["SpanMapper"]

_ERROR = StatusCode.ERROR
_UNSET = StatusCode.UNSET
_DROPPED = (
    "otel.dropped_attributes_count",
    "otel.dropped_events_count",
    "otel.dropped_links_count",
)


class SpanMapper:
    """Maps spans to events; safe to share between threads.

    Args:
        resource_tags: Globs of the resource attributes that become tags.
        span_tags: Span attributes that become tags.
        redact: Globs of attribute keys whose values are replaced.
    """

    def __init__(
        self, resource_tags: Sequence[str], span_tags: Sequence[str], redact: Sequence[str]
    ) -> None:
        self._redaction = Redaction(redact)
        self._scopes = ScopeCache(
            resource_tags, self._redaction, partial(_Scope, frozenset(span_tags))
        )

    def map(self, spans: Sequence[ReadableSpan]) -> list[Event]:
        """Return the event of each span, followed by those of its events and links."""
        events: list[Event] = []
        redaction = self._redaction if self._redaction.active else None
        known_resource = known_scope = known_trace_id = None
        scope = correlation_id = None
        for head, status_code, message, given, span_events, links, dropped in read_spans(spans):
            name, context, parent, kind, start, end, resource, sdk_scope = head
            if scope is None or resource is not known_resource or sdk_scope is not known_scope:
                scope = self._scopes.of(resource, sdk_scope)
                known_resource, known_scope = resource, sdk_scope
            attributes = given if redaction is None else redaction.apply(given)
            if context:
                trace_id, number, _, _, trace_state, _ = context
                if trace_id != known_trace_id:  # the spans of a trace often end together
                    correlation_id, known_trace_id = hex_trace_id(trace_id), trace_id
                span_id = hex_span_id(number)
            else:
                trace_state = correlation_id = known_trace_id = None
                span_id = ""
            start_ns = start or end or 0
            # In key order, which is the order of line protocol.
            fields: dict[str, FieldValue]
            parent_span_id = hex_span_id(parent[1]) if parent else ""
            if end is None or not span_id or dropped is not NONE_DROPPED:
                fields = {} if end is None else {"duration_ns": end - start_ns}
                fields["error"] = 1 if status_code is _ERROR else 0
                counts = zip(_DROPPED, dropped, strict=True)
                fields.update((key, count) for key, count in counts if count)
                fields["parent_span_id"] = parent_span_id
                if span_id:
                    fields["span_id"] = span_id
            else:
                fields = {
                    "duration_ns": end - start_ns,
                    "error": 1 if status_code is _ERROR else 0,
                    "parent_span_id": parent_span_id,
                    "span_id": span_id,
                }
            if message:
                fields["status_message"] = message
            if trace_state is not DEFAULT_TRACE_STATE and trace_state:
                fields["trace_state"] = trace_state.to_header()
            events.append(
                Event(
                    "spans",
                    scope.span_tags(name, kind, status_code, attributes),
                    fields,
                    start_ns,
                    SCHEMA_VERSION,
                    correlation_id,
                    "span",
                    attributes or None,
                )
            )
            if span_events:
                events.extend(
                    _map_events(scope, name, span_id, correlation_id, span_events, redaction)
                )
            if links:
                events.extend(
                    _map_links(scope, name, span_id, correlation_id, start_ns, links, redaction)
                )
        return events


class _Scope:
    """The tag sets of one resource and scope."""

    def __init__(
        self,
        tag_keys: frozenset[str],
        below: Mapping[str, str],
        above: Mapping[str, str],
        kept: Kept,
    ) -> None:
        self._tag_keys = tag_keys
        self._below = below
        self._above = above
        self._pickers: dict[tuple[str, ...], _Picker] = {}
        self._tags: TagCache[Any, TagSet] = TagCache(kept)

    def span_tags(
        self, name: str, kind: SpanKind, status: StatusCode, attributes: Mapping[str, Any]
    ) -> TagSet:
        shape = tuple(attributes)
        picker = self._pickers.get(shape)
        if picker is None:
            picker = self._picker(shape, ())
        values = picker.pick(attributes)
        # Members of an Enum hash in Python, their values in C.
        key = (picker, name, kind._value_, status._value_, values, picker.types(values))
        try:
            tags = self._tags.get(key)
        except TypeError:  # a nested map cannot be hashed
            return self._span_tag_set(name, kind, status, attributes)
        if tags is None:
            tags = self._span_tag_set(name, kind, status, attributes)
            picked = [attributes[key] for key in picker.keys]
            if all(isinstance(value, (str, int, float)) for value in picked):
                numbers = tuple(i for i, value in enumerate(picked) if not isinstance(value, str))
                if not picker.numbers.issuperset(numbers):
                    self._picker(shape, (*picker.numbers, *numbers))
                else:
                    self._tags.keep(key, tags)
        return tags

    def _picker(self, shape: tuple[str, ...], numbers: tuple[int, ...]) -> _Picker:
        if len(self._pickers) >= MAX_CACHED_TAG_SETS // 64:
            self._pickers.clear()
        keys = tuple(key for key in shape if key in self._tag_keys)
        picker = self._pickers[shape] = _Picker(keys, frozenset(numbers))
        return picker

    def _span_tag_set(
        self, name: str, kind: SpanKind, status: StatusCode, attributes: Mapping[str, Any]
    ) -> TagSet:
        tags = dict(self._below)
        for key in self._tag_keys & attributes.keys():
            tags[key] = tag_text(attributes[key])
        tags.update(self._above)
        tags["span.name"] = name
        tags["span.kind"] = kind.name
        if status is not _UNSET:
            tags["otel.status_code"] = status.name
        return TagSet(tags)

    def other_tags(self, own: tuple[tuple[str, str], ...]) -> TagSet:
        """Return the tags of a span event or link."""
        tags = self._tags.get(own)
        if tags is None:
            tags = self._tags.keep(own, TagSet({**self._below, **self._above, **dict(own)}))
        return tags


class _Picker:
    """Picks the values of the tag attributes out of attributes of one shape.

    Equal numbers of different types (1, 1.0, True) have different texts, so a key of tags has
    the types of the numbers in it.

    Args:
        keys: Of the tag attributes.
        numbers: Positions among them that ever held a number.
    """

    __slots__ = ("keys", "numbers", "pick", "types")

    def __init__(self, keys: tuple[str, ...], numbers: frozenset[int]) -> None:
        self.keys = keys
        self.numbers = numbers
        self.pick: Callable[[Mapping[str, Any]], Any] = itemgetter(*keys) if keys else _nothing
        self.types = _type_picker(sorted(numbers), len(keys))


def _nothing(_: Any) -> None:
    return None


def _type_picker(positions: Sequence[int], count: int) -> Callable[[Any], Any]:
    if not positions:
        return _nothing
    if count == 1:  # itemgetter gives a bare value for one key and a tuple for several
        return type
    pick = itemgetter(*positions)
    if len(positions) == 1:
        return lambda values: type(pick(values))
    return lambda values: tuple(map(type, pick(values)))


def _map_events(
    scope: _Scope,
    span_name: str,
    span_id: str,
    correlation_id: str | None,
    span_events: Collection[SpanEvent],
    redaction: Redaction | None,
) -> Iterator[Event]:
    for span_event in span_events:
        attributes = attribute_map(span_event.attributes)
        if redaction is not None:
            attributes = redaction.apply(attributes)
        own: tuple[tuple[str, str], ...] = (
            ("event.name", span_event.name),
            ("span.name", span_name),
        )
        exception_type = attributes.get("exception.type")
        if exception_type is not None:
            own += (("exception.type", tag_text(exception_type)),)
        yield Event(
            "span_events",
            scope.other_tags(own),
            _fields_of_part(span_id, span_event.dropped_attributes),
            span_event.timestamp,
            SCHEMA_VERSION,
            correlation_id,
            "span_event",
            attributes or None,
        )


def _map_links(
    scope: _Scope,
    span_name: str,
    span_id: str,
    correlation_id: str | None,
    start_ns: int,
    links: Collection[Link],
    redaction: Redaction | None,
) -> Iterator[Event]:
    tags = scope.other_tags((("span.name", span_name),))
    for link in links:
        attributes = attribute_map(link.attributes)
        if redaction is not None:
            attributes = redaction.apply(attributes)
        fields = _fields_of_part(span_id, link.dropped_attributes)
        fields["linked_trace_id"] = hex_trace_id(link.context.trace_id)
        fields["linked_span_id"] = hex_span_id(link.context.span_id)
        if link.context.trace_state:
            fields["linked_trace_state"] = link.context.trace_state.to_header()
        yield Event(
            "span_links",
            tags,
            fields,
            start_ns,
            SCHEMA_VERSION,
            correlation_id,
            "span_link",
            attributes or None,
        )


def _fields_of_part(span_id: str, dropped_attributes: int) -> dict[str, FieldValue]:
    fields: dict[str, FieldValue] = {"span_id": span_id}
    if dropped_attributes:
        fields["otel.dropped_attributes_count"] = dropped_attributes
    return fields

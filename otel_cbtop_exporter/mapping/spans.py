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
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.status import StatusCode

from otel_cbtop_exporter._sdk import attribute_map, read_span
from otel_cbtop_exporter.events import SCHEMA_VERSION, Event, FieldValue, TagSet
from otel_cbtop_exporter.mapping.attributes import (
    MAX_CACHED_TAG_SETS,
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
_PICK_NOTHING: tuple[Any, ...] = ()


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
        append = events.append
        redaction = self._redaction if self._redaction.active else None
        for span in spans:
            (
                name,
                context,
                parent,
                kind,
                status,
                start,
                end,
                attributes,
                span_events,
                links,
                dropped,
                resource,
                instrumentation_scope,
            ) = read_span(span)
            scope = self._scopes.of(resource, instrumentation_scope)
            if redaction is not None:
                attributes = redaction.apply(attributes)
            status_code = status.status_code
            correlation_id = hex_trace_id(context.trace_id) if context else None
            span_id = hex_span_id(context.span_id) if context else ""
            start_ns = start or end or 0
            # In key order, which is the order of line protocol.
            fields: dict[str, FieldValue] = {}
            if end is not None:
                fields["duration_ns"] = end - start_ns
            fields["error"] = 1 if status_code is _ERROR else 0
            if dropped[0]:
                fields["otel.dropped_attributes_count"] = dropped[0]
            if dropped[1]:
                fields["otel.dropped_events_count"] = dropped[1]
            if dropped[2]:
                fields["otel.dropped_links_count"] = dropped[2]
            fields["parent_span_id"] = hex_span_id(parent.span_id) if parent else ""
            if span_id:
                fields["span_id"] = span_id
            if status.description:
                fields["status_message"] = status.description
            if context and context.trace_state:
                fields["trace_state"] = context.trace_state.to_header()
            append(
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
        self, tag_keys: frozenset[str], below: Mapping[str, str], above: Mapping[str, str]
    ) -> None:
        self._tag_keys = tag_keys
        self._below = below
        self._above = above
        self._pickers: dict[tuple[str, ...], _Picker] = {}
        self._tags: TagCache[Any] = TagCache()

    def span_tags(
        self, name: str, kind: SpanKind, status: StatusCode, attributes: Mapping[str, Any]
    ) -> TagSet:
        shape = tuple(attributes)
        picker = self._pickers.get(shape)
        if picker is None:
            picker = self._picker(shape)
        values = picker.pick(attributes) if picker.pick else _PICK_NOTHING
        # Equal values of different types (1, 1.0, True) have different texts.
        key = (name, kind, status, picker.keys, values, picker.types(values))
        try:
            tags = self._tags.get(key)
        except TypeError:  # a nested map cannot be hashed
            return self._span_tag_set(name, kind, status, attributes)
        if tags is None:
            tags = self._tags.keep(key, self._span_tag_set(name, kind, status, attributes))
        return tags

    def _picker(self, shape: tuple[str, ...]) -> _Picker:
        if len(self._pickers) >= MAX_CACHED_TAG_SETS // 64:
            self._pickers.clear()
        keys = tuple(key for key in shape if key in self._tag_keys)
        picker = self._pickers[shape] = _Picker(keys)
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
    """Picks the values of the tag attributes out of attributes of one shape."""

    __slots__ = ("keys", "pick", "types")

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self.pick: Callable[[Mapping[str, Any]], Any] | None = itemgetter(*keys) if keys else None
        # itemgetter gives a bare value for one key and a tuple for several.
        self.types: Callable[[Any], Any] = _types_of_all if len(keys) > 1 else type


def _types_of_all(values: tuple[Any, ...]) -> tuple[type, ...]:
    return tuple(map(type, values))


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

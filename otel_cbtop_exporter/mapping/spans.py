"""Spans, span events and links as events.

Semantics: https://opentelemetry.io/docs/specs/otel/trace/sdk/ and, for dropped counts, the
mapping to non-OTLP formats.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from opentelemetry.sdk.trace import Event as SpanEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import DEFAULT_TRACE_STATE, Link, SpanKind
from opentelemetry.trace.status import StatusCode

from otel_cbtop_exporter._sdk import NONE_DROPPED, SpanParts, attribute_map, read_spans
from otel_cbtop_exporter.event_batch import Events, Tables
from otel_cbtop_exporter.event_table import INT64_MAX
from otel_cbtop_exporter.events import SCHEMA_VERSION, Event
from otel_cbtop_exporter.mapping.attributes import (
    Redaction,
    ScopeCache,
    hex_span_id,
    hex_trace_id,
    plain_time,
    present,
    tag_text,
)
from otel_cbtop_exporter.mapping.span_tags import Shape, SpanScope, without_path
from otel_cbtop_exporter.tag_set import TagSet

__all__ = ["SpanMapper"]

_ERROR = StatusCode.ERROR
_SERVER = SpanKind.SERVER
# Sorted by key, as line protocol is.
_KEYS = ("duration_ns", "error", "parent_span_id", "span_id")
_FAILED_KEYS = (*_KEYS, "status_message")
_DROPPED = (
    "otel.dropped_attributes_count",
    "otel.dropped_events_count",
    "otel.dropped_links_count",
)


class SpanMapper:
    """Maps spans to events; safe to share between threads.

    Args:
        resource_tags: Globs of the resource attributes that become tags.
        span_tags: Keys of the span attributes that become tags.
        redact: Globs of attribute keys whose values are replaced.
    """

    def __init__(
        self, resource_tags: Sequence[str], span_tags: Sequence[str], redact: Sequence[str]
    ) -> None:
        self._redaction = Redaction(redact)
        self._scopes = ScopeCache(
            resource_tags, self._redaction, partial(SpanScope, frozenset(span_tags))
        )

    def map(self, spans: Sequence[ReadableSpan]) -> Events:
        """Return the events of spans, their span events and their links."""
        # One long function, because a call for each span is 4 % of what mapping it costs.
        tables = Tables()
        redaction = self._redaction if self._redaction.active else None
        add = tables.cells("spans", "span", _KEYS).extend
        add_failed = tables.cells("spans", "span", _FAILED_KEYS).extend
        scope: SpanScope
        shape: Shape
        known_resource: object = self  # differs from every resource: the first span sets the scope
        known_scope = known_keys = known_trace_id = correlation_id = None
        for (
            name,
            context,
            parent,
            kind,
            start,
            end,
            resource,
            sdk_scope,
            status_code,
            message,
            attributes,
            span_events,
            links,
            dropped,
        ) in read_spans(spans) if redaction is None else _read_redacted(spans, redaction):
            if resource is not known_resource or sdk_scope is not known_scope:
                scope = self._scopes.of(resource, sdk_scope)
                known_resource, known_scope, known_keys = resource, sdk_scope, None
            if context:
                # By position: unpacking a subclass of tuple takes longer.
                trace_id, span_id, trace_state = context[0], context[1], context[4]
                if trace_id != known_trace_id:  # the spans of a trace often end together
                    correlation_id, known_trace_id = hex_trace_id(trace_id), trace_id
            else:
                trace_state = correlation_id = known_trace_id = None
                span_id = 0
            parent_id = parent[1] if parent else 0
            keys = [*attributes]  # comparing lists is faster than making a tuple
            if keys != known_keys:
                shape, known_keys = scope.shape(tuple(keys)), keys
                # Unpacked once: reading it from the shape for each span is 3 % of JSON's time.
                _, _, _, pick, number_at, types_of, has_path, tag_sets = shape
            values = pick(attributes)
            # The key has the values of Enum members: these hash in C, the members in Python.
            types = types_of(values) if number_at is None else type(values[number_at])
            key = (
                without_path(name, attributes)
                if has_path and kind is _SERVER and " " in name
                else name,
                kind._value_,
                status_code._value_,
                values,
                types,
            )
            try:
                tags = tag_sets[key]
            except (KeyError, TypeError):  # TypeError: a nested map cannot be hashed
                tags = scope.span_tags(shape, key, kind, status_code, attributes)
                known_keys = None  # that may have replaced their shape
            start_ns = start if start is not None else end or 0
            duration_ns = None if end is None else end - start_ns
            is_error = 1 if status_code is _ERROR else 0
            if (
                type(start_ns) is int
                and type(duration_ns) is int
                and 0 <= duration_ns <= INT64_MAX
                and span_id
                and (not message or type(message) is str)
                and dropped is NONE_DROPPED
                and (trace_state is DEFAULT_TRACE_STATE or not trace_state)
            ):
                cells = (
                    tags,
                    start_ns,
                    correlation_id,
                    attributes or None,
                    duration_ns,
                    is_error,
                    parent_id,
                    span_id,
                )
                if message:
                    add_failed((*cells, message))
                else:
                    add(cells)
            else:
                start_ns = plain_time(start_ns)
                fields = {
                    "duration_ns": plain_time(duration_ns),
                    "error": is_error,
                    **_dropped_fields(dropped),
                    "parent_span_id": _id_text(parent_id),
                    "span_id": _id_text(span_id) or None,
                    "status_message": message or None,
                    "trace_state": trace_state.to_header() if trace_state else None,
                }
                tables.add(
                    Event(
                        "spans",
                        tags,
                        present(fields),
                        start_ns,
                        SCHEMA_VERSION,
                        correlation_id,
                        "span",
                        attributes or None,
                    )
                )
            if span_events:
                _map_events(tables, scope, tags, span_id, correlation_id, span_events, redaction)
            if links:
                _map_links(tables, scope, tags, span_id, correlation_id, start_ns, links, redaction)
        return tables.events()


def _read_redacted(spans: Sequence[ReadableSpan], redaction: Redaction) -> Iterator[SpanParts]:
    """Yield the same as `read_spans`, with each span's own attributes and message redacted."""
    for parts in map(SpanParts._make, read_spans(spans)):
        is_server = parts.kind is _SERVER
        yield parts._replace(
            # Before redaction, which may replace the path that is searched for.
            name=without_path(parts.name, parts.attributes) if is_server else parts.name,
            attributes=redaction.apply(parts.attributes),
            # Redacted too, because the SDK copies an exception's message into it.
            status_message=redaction.value("status_message", parts.status_message or None),
        )


def _dropped_fields(dropped: tuple[int, int, int]) -> dict[str, int]:
    return {key: count for key, count in zip(_DROPPED, dropped, strict=True) if count}


def _id_text(span_id: int) -> str:
    return hex_span_id(span_id) if span_id else ""


def _map_events(
    tables: Tables,
    scope: SpanScope,
    span_tags: TagSet,
    span_id: int,
    correlation_id: str | None,
    span_events: Collection[SpanEvent],
    redaction: Redaction | None,
) -> None:
    add = tables.cells("span_events", "span_event", ("span_id",)).extend
    span_name = span_tags.get("span.name", "")
    for span_event in span_events:
        attributes = attribute_map(span_event.attributes)
        if redaction is not None:
            attributes = redaction.apply(attributes)
        own: tuple[tuple[str, str], ...] = (
            ("event.name", span_event.name),
            ("span.name", span_name),
        )
        exception_type = attributes.get("exception.type")
        if exception_type:
            own += (("exception.type", tag_text(exception_type)),)
        tags = scope.other_tags(own)
        time_ns = span_event.timestamp
        dropped = span_event.dropped_attributes
        if type(time_ns) is int and not dropped:
            add((tags, time_ns, correlation_id, attributes or None, span_id))
            continue
        fields = present(
            {"span_id": _id_text(span_id), "otel.dropped_attributes_count": dropped or None}
        )
        tables.add(
            Event(
                "span_events",
                tags,
                fields,
                plain_time(time_ns),
                SCHEMA_VERSION,
                correlation_id,
                "span_event",
                attributes or None,
            )
        )


def _map_links(
    tables: Tables,
    scope: SpanScope,
    span_tags: TagSet,
    span_id: int,
    correlation_id: str | None,
    start_ns: int,
    links: Collection[Link],
    redaction: Redaction | None,
) -> None:
    tags = scope.other_tags((("span.name", span_tags.get("span.name", "")),))
    for link in links:
        attributes = attribute_map(link.attributes)
        if redaction is not None:
            attributes = redaction.apply(attributes)
        context = link.context
        fields = present(
            {
                "span_id": _id_text(span_id),
                "otel.dropped_attributes_count": link.dropped_attributes or None,
                "linked_trace_id": hex_trace_id(context.trace_id),
                "linked_span_id": _id_text(context.span_id) or None,
                "linked_trace_state": (
                    context.trace_state.to_header() if context.trace_state else None
                ),
            }
        )
        tables.add(
            Event(
                "span_links",
                tags,
                fields,
                start_ns,
                SCHEMA_VERSION,
                correlation_id,
                "span_link",
                attributes or None,
            )
        )

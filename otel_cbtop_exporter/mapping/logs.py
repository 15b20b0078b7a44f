"""Log records as events.

Semantics: https://opentelemetry.io/docs/specs/otel/logs/data-model/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from otel_cbtop_exporter._sdk import ReadableLogRecord, attribute_map
from otel_cbtop_exporter.encoding.event_json import encode_value
from otel_cbtop_exporter.events import SCHEMA_VERSION, Event, FieldValue, TagSet
from otel_cbtop_exporter.mapping.attributes import (
    Kept,
    Redaction,
    ScopeCache,
    TagCache,
    hex_span_id,
    hex_trace_id,
    tag_text,
)

__all__ = ["LogMapper"]


class LogMapper:
    """Maps log records to events; safe to share between threads.

    Args:
        resource_tags: Globs of the resource attributes that become tags.
        redact: Globs of attribute keys whose values are replaced.
    """

    def __init__(self, resource_tags: Sequence[str], redact: Sequence[str]) -> None:
        self._redaction = Redaction(redact)
        self._scopes = ScopeCache(resource_tags, self._redaction, _Scope)

    def map(self, records: Sequence[ReadableLogRecord]) -> list[Event]:
        """Return one event for each record, in order."""
        events: list[Event] = []
        redaction = self._redaction if self._redaction.active else None
        known_resource = known_scope = scope = None
        for readable in records:
            record = readable.log_record
            resource, sdk_scope = readable.resource, readable.instrumentation_scope
            if scope is None or resource is not known_resource or sdk_scope is not known_scope:
                scope = self._scopes.of(resource, sdk_scope)
                known_resource, known_scope = resource, sdk_scope
            attributes = attribute_map(record.attributes)
            body = record.body
            if redaction is not None:
                attributes = redaction.apply(attributes)
                body = redaction.inside(body)
            observed = record.observed_timestamp
            dropped = readable.dropped_attributes
            severity = record.severity_number
            span_id = record.span_id
            # In key order, which is the order of line protocol.
            fields: dict[str, FieldValue] = {}
            if type(body) is str:
                fields["body"] = body
            elif body is not None:
                fields["body"] = body if isinstance(body, str) else encode_value(body).decode()
            if observed:
                fields["observed_timestamp_ns"] = observed
            if dropped:
                fields["otel.dropped_attributes_count"] = dropped
            if severity is not None and severity._value_:  # `value` is looked up in Python
                fields["severity_number"] = severity._value_
            if span_id:
                fields["span_id"] = hex_span_id(span_id)
            if not fields:
                # A record that says nothing but that it happened; 0 is UNSPECIFIED.
                fields["severity_number"] = 0
            exception_type = attributes.get("exception.type") if attributes else None
            trace_id = record.trace_id
            events.append(
                Event(
                    "logs",
                    scope.tags(record.severity_text, record.event_name, exception_type),
                    fields,
                    record.timestamp or observed or 0,
                    SCHEMA_VERSION,
                    hex_trace_id(trace_id) if trace_id else None,
                    "log",
                    attributes or None,
                )
            )
        return events


class _Scope:
    """The tag sets of one resource and scope."""

    def __init__(self, below: Mapping[str, str], above: Mapping[str, str], kept: Kept) -> None:
        self._base = {**below, **above}
        self._tags: TagCache[tuple[str | None, str | None, str], TagSet] = TagCache(kept)

    def tags(self, severity: str | None, event_name: str | None, exception_type: Any) -> TagSet:
        key = (severity, event_name, tag_text(exception_type) if exception_type else "")
        tags = self._tags.get(key)
        if tags is None:
            own = {"severity_text": severity or "", "event.name": event_name or ""}
            tags = TagSet({**self._base, **own, "exception.type": key[2]})
            self._tags.keep(key, tags)
        return tags

"""Log records as events.

Semantics: https://opentelemetry.io/docs/specs/otel/logs/data-model/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from otel_cbtop_exporter._sdk import SEVERITY_NAMES, ReadableLogRecord, read_logs
from otel_cbtop_exporter.encoding.json_values import encode_value
from otel_cbtop_exporter.event_batch import Events, Tables
from otel_cbtop_exporter.event_table import INT64_MAX
from otel_cbtop_exporter.events import SCHEMA_VERSION, Event
from otel_cbtop_exporter.mapping.attributes import (
    REDACTED,
    CacheBudget,
    Redaction,
    ScopeCache,
    TagCache,
    hex_span_id,
    plain_time,
    present,
    tag_text,
)
from otel_cbtop_exporter.tag_set import TagSet

__all__ = ["LogMapper"]

# Sorted by key, as line protocol is.
_UNTRACED = ("body", "observed_timestamp_ns", "severity_number")
_TRACED = (*_UNTRACED, "span_id")

# The types of a plain record's body, its two times and its severity number.
_PLAIN = (str, int, int, int)


_Key = tuple[str | None, str | None, str | None]


class LogMapper:
    """Maps log records to events; safe to share between threads.

    Args:
        resource_tags: Globs of the resource attributes that become tags.
        redact: Globs of attribute keys whose values are replaced.
    """

    def __init__(self, resource_tags: Sequence[str], redact: Sequence[str]) -> None:
        self._redaction = Redaction(redact)
        self._scopes = ScopeCache(resource_tags, self._redaction, _Scope)

    def map(self, records: Sequence[ReadableLogRecord]) -> Events:
        """Return one event for each record, in order."""
        tables = Tables(in_order=True)
        redaction = self._redaction if self._redaction.active else None
        add: Callable[[tuple[Any, ...]], None] | None = None
        keys: tuple[str, ...] = ()
        scope: _Scope
        known_resource: object = self  # differs from every resource: the first record sets scope
        known_scope = known_name = known_type = None
        known_text: Any = None
        tags: TagSet
        for record, own_attributes, dropped, resource, sdk_scope in read_logs(records):
            if resource is not known_resource or sdk_scope is not known_scope:
                scope = self._scopes.of(resource, sdk_scope)
                known_resource, known_scope = resource, sdk_scope
                known_text = self  # differs from every text, so that the tags are looked up
            attributes, body = own_attributes, record.body
            if redaction is not None:
                attributes = redaction.apply(own_attributes)
                body = _redacted_body(redaction, body)
            observed = record.observed_timestamp
            time_ns = record.timestamp or observed or 0
            severity = record.severity_number
            try:
                number = severity._value_ if severity is not None else 0  # `value` runs Python code
            except AttributeError:  # a bare number
                number = severity if type(severity) is int else 0
            trace_id, span_id = record.trace_id, record.span_id
            # `hex_trace_id`, inlined to save the call.
            correlation_id = trace_id.to_bytes(16, "big").hex() if trace_id else None
            exception_type = None
            if "exception.type" in attributes and (given := attributes["exception.type"]):
                exception_type = tag_text(given)
            severity_text, event_name = record.severity_text, record.event_name
            if not severity_text and number:
                severity_text = SEVERITY_NAMES.get(number)
            if (  # mostly the same as in the previous record
                severity_text is not known_text
                or event_name is not known_name
                or exception_type is not known_type
            ):
                known_text, known_name, known_type = severity_text, event_name, exception_type
                tags = scope.tags((severity_text, event_name, exception_type))
            if (
                (type(body), type(time_ns), type(observed), type(number)) == _PLAIN
                and 0 < observed <= INT64_MAX
                and number
                and not dropped
            ):
                wanted = _TRACED if span_id else _UNTRACED
                if add is None or wanted is not keys:
                    keys = wanted
                    add = tables.cells("logs", "log", keys).extend
                cells = (
                    tags,
                    time_ns,
                    correlation_id,
                    attributes or None,
                    body,
                    observed,
                    number,
                    span_id,
                )
                add(cells if span_id else cells[:-1])
                continue
            add = None
            if body is not None and not isinstance(body, str):
                body = encode_value(body).decode()
            fields = {
                "body": body,
                "observed_timestamp_ns": plain_time(observed or None),
                "otel.dropped_attributes_count": dropped or None,
                "severity_number": number or None,
                "span_id": hex_span_id(span_id) if span_id else None,
            }
            tables.add(
                Event(
                    "logs",
                    tags,
                    # A record may be empty, but an event needs a field; 0 is UNSPECIFIED.
                    present(fields) or {"severity_number": 0},
                    plain_time(time_ns),
                    SCHEMA_VERSION,
                    correlation_id,
                    "log",
                    attributes or None,
                )
            )
        return tables.events()


def _redacted_body(redaction: Redaction, body: Any) -> str | None:
    """Return a body's redacted text, in the same form as without redaction."""
    shown: str | None = redaction.value("body", body)
    if shown is None or shown is REDACTED or isinstance(body, str):
        return shown
    return encode_value(shown).decode()


class _Scope:
    """The tag sets of one resource and scope."""

    def __init__(
        self, resource_tags: Mapping[str, str], scope_tags: Mapping[str, str], budget: CacheBudget
    ) -> None:
        self._base = {**resource_tags, **scope_tags}
        self._known: TagCache[_Key, TagSet] = TagCache(budget)

    def tags(self, key: _Key) -> TagSet:
        """Return the tags for a severity text, an event name and an exception type."""
        known = self._known.get(key)
        if known is not None:
            return known
        names = ("severity_text", "event.name", "exception.type")
        own = {name: text or "" for name, text in zip(names, key, strict=True)}
        return self._known.keep(key, TagSet({**self._base, **own}))

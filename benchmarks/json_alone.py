"""What bounds spans to JSON: the same lines from one loop that can do nothing else.

It has the checks that the content needs: ids, times, texts, tag keys, nulls. It has no redaction,
makes no tables for other encoders, and gives up at most of what is unusual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import DEFAULT_TRACE_STATE, SpanKind
from opentelemetry.trace.status import StatusCode

from otel_cbtop_exporter.config import MappingConfig
from otel_cbtop_exporter.event_table import INT64_MAX
from otel_cbtop_exporter.events import SCHEMA_VERSION
from otel_cbtop_exporter.mapping.attributes import Redaction, ScopeCache
from otel_cbtop_exporter.mapping.span_tags import SpanScope, without_path

_MAPPING = MappingConfig()
# Looking a member of an Enum up would take a tenth of the loop's time.
_ERROR, _SERVER = StatusCode.ERROR, SpanKind.SERVER


class _SpanFields(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    duration_ns: int
    error: int
    parent_span_id: str
    span_id: str
    status_message: str | None = None


class _EventFields(msgspec.Struct, frozen=True, gc=False):
    span_id: str


class _Line(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    measurement: str
    tags: msgspec.Raw
    fields: _SpanFields | _EventFields
    timestamp_ns: int
    schema_version: int
    correlation_id: str
    signal: str
    attributes: dict[str, object]


def json_alone() -> Callable[[Sequence[ReadableSpan]], bytes]:
    """Return a function that makes the JSON lines of usual spans and their events."""
    scopes = ScopeCache(
        _MAPPING.resource_tags, Redaction(()), partial(SpanScope, frozenset(_MAPPING.span_tags))
    )
    encode_lines = msgspec.json.Encoder().encode_lines

    def encode(spans: Sequence[ReadableSpan]) -> bytes:
        lines: list[_Line] = []
        of_events: list[_Line] = []
        add = lines.append
        known_resource = known_scope = known_keys = known_trace_id = None
        for span in spans:
            bag, span_events, links, status = (
                span._attributes,
                span._events,
                span._links,
                span._status,
            )
            assert type(span) is ReadableSpan
            is_cut = bag.dropped or span_events.dropped or links.dropped
            assert not is_cut
            assert not links._dq
            resource, sdk_scope = span._resource, span._instrumentation_scope
            if resource is not known_resource or sdk_scope is not known_scope:
                scope = scopes.of(resource, sdk_scope)
                known_resource, known_scope, known_keys = resource, sdk_scope, None
            context, parent = span._context, span._parent
            trace_id, trace_state = context[0], context[4]
            if trace_id != known_trace_id:
                correlation_id, known_trace_id = trace_id.to_bytes(16, "big").hex(), trace_id
            attributes = bag._dict
            keys = [*attributes]
            if keys != known_keys:
                shape, known_keys = scope.shape(tuple(keys)), keys
                _, _, _, pick, number_at, types_of, has_path, tag_sets = shape
            values = pick(attributes)
            name, kind, code, message = (
                span._name,
                span._kind,
                status._status_code,
                status._description,
            )
            if has_path and kind is _SERVER and " " in name:
                name = without_path(name, attributes)
            types = types_of(values) if number_at is None else type(values[number_at])
            key = (name, kind._value_, code._value_, values, types)
            try:
                tags = tag_sets[key]
            except (KeyError, TypeError):
                tags = scope.span_tags(shape, key, kind, code, attributes)
                known_keys = None
            start_ns = span._start_time
            duration_ns = span._end_time - start_ns
            assert type(start_ns) is int
            assert type(duration_ns) is int
            assert 0 <= duration_ns <= INT64_MAX
            assert not message or type(message) is str
            assert trace_state is DEFAULT_TRACE_STATE or not trace_state
            span_id = context[1].to_bytes(8, "big").hex()
            fields = _SpanFields(
                duration_ns,
                1 if code is _ERROR else 0,
                "" if parent is None else parent[1].to_bytes(8, "big").hex(),
                span_id,
                message or None,
            )
            add(
                _Line(
                    "spans",
                    tags.json,
                    fields,
                    start_ns,
                    SCHEMA_VERSION,
                    correlation_id,
                    "span",
                    attributes,
                )
            )
            if span_events._dq:
                for span_event in span_events._dq:
                    bag = span_event._attributes
                    assert not bag.dropped
                    own = (
                        ("event.name", span_event._name),
                        ("span.name", tags["span.name"]),
                        ("exception.type", bag["exception.type"]),
                    )
                    of_events.append(
                        _Line(
                            "span_events",
                            scope.other_tags(own).json,
                            _EventFields(span_id),
                            span_event._timestamp,
                            SCHEMA_VERSION,
                            correlation_id,
                            "span_event",
                            bag._dict,
                        )
                    )
        text = encode_lines(lines + of_events)
        assert text.rfind(b":null") < 0
        return text

    return encode

"""The one door to private and experimental names of the SDK, each with its public fallback.

Reading a span through its public properties copies its three containers, which is three
quarters of what reading it costs. The fast way is compared with the public way at import, for
the SDK that is installed; where they differ, and for objects of classes that we do not know,
the public way is used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry.attributes import BoundedAttributes

# Logs live under an underscore for as long as OpenTelemetry calls them experimental.
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind
from opentelemetry.trace.status import Status, StatusCode

__all__ = [
    "LogRecordExportResult",
    "LogRecordExporter",
    "ReadableLogRecord",
    "SpanParts",
    "attribute_map",
    "read_span",
    "suppress_instrumentation",
]

_NOTHING: dict[str, Any] = {}
_KINDS = (BoundedAttributes, BoundedList, BoundedList)
_NONE_DROPPED = (0, 0, 0)


class SpanParts(NamedTuple):
    """What a span holds; the containers are the span's own and must not be changed.

    `dropped` counts attributes, events and links that the SDK's limits left out.
    """

    name: str
    context: SpanContext | None
    parent: SpanContext | None
    kind: SpanKind
    status: Status
    start_time: int | None
    end_time: int | None
    attributes: Mapping[str, Any]
    events: Collection[Event]
    links: Collection[Link]
    dropped: tuple[int, int, int]
    resource: Resource
    scope: InstrumentationScope | None


def _read_span_publicly(span: ReadableSpan) -> SpanParts:
    return SpanParts(
        span.name,
        span.get_span_context(),
        span.parent,
        span.kind,
        span.status,
        span.start_time,
        span.end_time,
        span.attributes or _NOTHING,
        span.events,
        span.links,
        (span.dropped_attributes, span.dropped_events, span.dropped_links),
        span.resource,
        span.instrumentation_scope,
    )


def _read_span_fast(span: ReadableSpan) -> tuple[Any, ...]:
    # A plain tuple in the order of SpanParts: naming it costs a third of this function.
    if type(span) is not ReadableSpan:
        return _read_span_publicly(span)
    state: dict[str, Any] = span.__dict__
    attributes = state["_attributes"]
    events = state["_events"]
    links = state["_links"]
    kinds: tuple[type, type, type] = (type(attributes), type(events), type(links))
    if kinds != _KINDS:
        return _read_span_publicly(span)
    if attributes.dropped or events.dropped or links.dropped:
        dropped = (attributes.dropped, events.dropped, links.dropped)
    else:
        dropped = _NONE_DROPPED
    return (
        state["_name"],
        state["_context"],
        state["_parent"],
        state["_kind"],
        state["_status"],
        state["_start_time"],
        state["_end_time"],
        attributes._dict,
        events._dq,
        links._dq,
        dropped,
        state["_resource"],
        state["_instrumentation_scope"],
    )


def _attribute_map_publicly(attributes: Any) -> Mapping[str, Any]:
    return attributes or _NOTHING


def _attribute_map_fast(attributes: Any) -> Mapping[str, Any]:
    if type(attributes) is BoundedAttributes:
        return attributes._dict
    return attributes or _NOTHING


def _fast_equals_public() -> bool:
    """Compare both ways on a span that has something in every part."""
    try:
        attributes = BoundedAttributes(2, {"one": 1, "two": (1, 2)})
        attributes.dropped = 1  # reaching the limit would log a warning
        context = SpanContext(1, 2, is_remote=False)
        events = BoundedList.from_seq(1, [Event("first", {}, 1), Event("last", attributes, 2)])
        links = BoundedList.from_seq(1, [Link(context), Link(context, attributes)])
        span = ReadableSpan(
            "name",
            context,
            context,
            Resource({"a": "b"}),
            attributes,
            events,
            links,
            SpanKind.SERVER,
            None,
            Status(StatusCode.ERROR, "why"),
            3,
            4,
            InstrumentationScope("scope"),
        )
        public, fast = _read_span_publicly(span), SpanParts(*_read_span_fast(span))
        return (
            type(fast.attributes) is dict
            and fast.attributes == dict(public.attributes)
            and tuple(fast.events) == public.events
            and tuple(fast.links) == public.links
            and fast._replace(attributes={}, events=(), links=())
            == public._replace(attributes={}, events=(), links=())
            and _attribute_map_fast(attributes) == dict(_attribute_map_publicly(attributes))
        )
    except (AttributeError, KeyError, TypeError):
        return False


FAST = _fast_equals_public()

read_span = _read_span_fast if FAST else _read_span_publicly
"""Return the parts of a span in the order of `SpanParts`."""

attribute_map = _attribute_map_fast if FAST else _attribute_map_publicly
"""Return attributes as a mapping that is quick to read and must not be changed."""


@contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """Keep instrumented libraries from tracing what this thread does inside the block.

    The SDK's processors do the same around `export()`; threads do not inherit it.
    """
    key = getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
    token = otel_context.attach(otel_context.set_value(key, value=True))
    try:
        yield
    finally:
        otel_context.detach(token)

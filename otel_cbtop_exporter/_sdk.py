"""The only module that uses private and experimental names of the SDK, with public fallbacks.

Reading a span through its public properties copies its three containers, which is three quarters
of the cost of reading it. At import, the fast way is compared with the public way on the SDK that
is installed. If they differ, and for objects of unknown classes, the public way is used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes

# The names of logs have an underscore as long as OpenTelemetry calls them experimental.
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind
from opentelemetry.trace.status import Status, StatusCode

__all__ = [
    "NONE_DROPPED",
    "SEVERITY_NAMES",
    "LogParts",
    "LogRecordExportResult",
    "LogRecordExporter",
    "ReadableLogRecord",
    "SpanParts",
    "attribute_map",
    "read_logs",
    "read_spans",
    "suppress_instrumentation",
]

_NOTHING: dict[str, Any] = {}


class SpanParts(NamedTuple):
    """The contents of a span; the containers are the span's own and must not be changed.

    `dropped` counts the attributes, events and links that the SDK dropped because of its limits;
    if there are none, it is the object `NONE_DROPPED`.
    """

    name: str
    context: SpanContext | None
    parent: SpanContext | None
    kind: SpanKind
    start_time: int | None
    end_time: int | None
    resource: Resource
    scope: InstrumentationScope | None
    status_code: StatusCode
    status_message: str | None
    attributes: Mapping[str, Any]
    events: Collection[Event]
    links: Collection[Link]
    dropped: tuple[int, int, int]


NONE_DROPPED = (0, 0, 0)

SEVERITY_NAMES = {one.value: one.name for one in SeverityNumber if one.value}
"""The data model's name for each severity number, for records without a severity text."""


class LogParts(NamedTuple):
    """The contents of a log record; the attributes are its own and must not be changed."""

    record: LogRecord
    attributes: Mapping[str, Any]
    dropped: int
    resource: Resource
    scope: InstrumentationScope | None


def _read_span_publicly(span: ReadableSpan) -> SpanParts:
    dropped = (span.dropped_attributes, span.dropped_events, span.dropped_links)
    return SpanParts(
        span.name,
        span.get_span_context(),
        span.parent,
        span.kind,
        span.start_time,
        span.end_time,
        span.resource,
        span.instrumentation_scope,
        span.status.status_code,
        span.status.description,
        span.attributes or _NOTHING,
        span.events,
        span.links,
        dropped if any(dropped) else NONE_DROPPED,
    )


def _read_spans_publicly(spans: Iterable[ReadableSpan]) -> Iterator[SpanParts]:
    return map(_read_span_publicly, spans)


def _read_spans_fast(spans: Iterable[ReadableSpan]) -> Iterator[Any]:
    # Plain tuples in the order of SpanParts: naming their items costs a third of this loop's time.
    for span in spans:
        parts: Any = None
        if type(span) is ReadableSpan:
            try:
                attributes: Any = span._attributes
                events: Any = span._events
                links: Any = span._links
                status = span._status
                if attributes.dropped or events.dropped or links.dropped:
                    dropped = (attributes.dropped, events.dropped, links.dropped)
                else:
                    dropped = NONE_DROPPED
                parts = (
                    span._name,
                    span._context,
                    span._parent,
                    span._kind,
                    span._start_time,
                    span._end_time,
                    span._resource,
                    span._instrumentation_scope,
                    status._status_code,
                    status._description,
                    attributes._dict,
                    events._dq,
                    links._dq,
                    dropped,
                )
            except AttributeError:  # made by hand, with other containers
                pass
        yield parts or _read_span_publicly(span)


def _read_log_publicly(readable: ReadableLogRecord) -> LogParts:
    record = readable.log_record
    return LogParts(
        record,
        record.attributes or _NOTHING,
        readable.dropped_attributes,
        readable.resource,
        readable.instrumentation_scope,
    )


def _read_logs_publicly(records: Iterable[ReadableLogRecord]) -> Iterator[LogParts]:
    return map(_read_log_publicly, records)


def _read_logs_fast(records: Iterable[ReadableLogRecord]) -> Iterator[Any]:
    for readable in records:
        record = readable.log_record
        attributes = record.attributes
        if type(attributes) is BoundedAttributes:
            yield (
                record,
                attributes._dict,
                attributes.dropped,
                readable.resource,
                readable.instrumentation_scope,
            )
        else:
            yield _read_log_publicly(readable)


def _attribute_map_publicly(attributes: Any) -> Mapping[str, Any]:
    return attributes or _NOTHING


def _attribute_map_fast(attributes: Any) -> Mapping[str, Any]:
    if type(attributes) is BoundedAttributes:
        return attributes._dict
    return attributes or _NOTHING


def _fast_equals_public() -> bool:
    """Compare both ways on a log record and on a span that has something in every part."""
    try:
        attributes = BoundedAttributes(2, {"one": 1, "two": (1, 2)})
        attributes.dropped = 1  # set here, because reaching the limit would log a warning
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
        record = ReadableLogRecord(LogRecord(attributes=attributes), Resource({}))
        public, fast = _read_span_publicly(span), SpanParts(*next(_read_spans_fast([span])))
        return (
            type(fast.attributes) is dict
            and fast.attributes == dict(public.attributes)
            and tuple(fast.events) == public.events
            and tuple(fast.links) == public.links
            and fast._replace(attributes={}, events=(), links=())
            == public._replace(attributes={}, events=(), links=())
            and next(_read_logs_fast([record])) == _read_log_publicly(record)
            and _attribute_map_fast(attributes) == dict(_attribute_map_publicly(attributes))
        )
    except (AttributeError, KeyError, TypeError):
        return False


FAST = _fast_equals_public()

read_spans = _read_spans_fast if FAST else _read_spans_publicly
"""Yield the parts of each span in the order of `SpanParts`."""

read_logs = _read_logs_fast if FAST else _read_logs_publicly
"""Yield the parts of each log record in the order of `LogParts`."""

attribute_map = _attribute_map_fast if FAST else _attribute_map_publicly
"""Return attributes as a mapping that is fast to read and must not be changed."""


@contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """Keep instrumented libraries from tracing what this thread does inside the block.

    The SDK's processors do the same around `export()`, but new threads do not inherit it.
    """
    key = getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
    token = otel_context.attach(otel_context.set_value(key, value=True))
    try:
        yield
    finally:
        otel_context.detach(token)

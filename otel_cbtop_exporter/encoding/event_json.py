"""Events as JSON, one object without a newline each: the bytes of JSON Lines, Kafka and console.

Values are written by the rules of `json_values.py`, with one exception: a field that is not finite
is an error, because mapping has already left such fields out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec

from otel_cbtop_exporter.encoding.json_values import (
    NULL,
    encode_value,
    encoder,
    may_hold_null,
    null_value,
)
from otel_cbtop_exporter.encoding.portable import NOT_ENCODABLE, portable
from otel_cbtop_exporter.errors import EventError
from otel_cbtop_exporter.event_batch import EventRun, Events
from otel_cbtop_exporter.event_table import EventTable
from otel_cbtop_exporter.events import SCHEMA_VERSION, Event, FieldValue, MetricInfo
from otel_cbtop_exporter.tag_set import TagSet, object_type, portable_text

__all__ = ["Bodies", "encode_event", "encode_events", "encode_joined"]

_encode = encoder.encode

_PLAIN_TYPES = frozenset({str, int, float, bool})


class Bodies(NamedTuple):
    """The result of encoding a sequence of events.

    Attributes:
        bodies: One JSON object in UTF-8 for each event, without a newline; empty if the event is
            refused.
        refused: By position, a short stable reason and a sentence. An event is refused if its time
            is not an integer, or it has no field, or one that is not a text, a boolean or a
            finite number.
    """

    bodies: list[bytes]
    refused: dict[int, tuple[str, str]]


def encode_events(events: Sequence[Event]) -> Bodies:
    """Encode events in order, whether mapping made them or a caller."""
    made = Bodies([], {})
    for part in Events.of(events).parts:
        if not isinstance(part, EventRun):
            made.bodies.extend(_encode_table(part))
            continue
        for event in part:
            try:
                body = encode_event(event)
            except EventError as error:
                made.refused[len(made.bodies)] = ("invalid", str(error))
                body = b""
            made.bodies.append(body)
    return made


def encode_joined(table: EventTable) -> bytes | None:
    """Encode a table as one text, with a line for each event; every line ends in a newline.

    Returns:
        None if something in the table needs the closer look of `encode_events`.
    """
    try:
        text = encoder.encode_lines(_rows(table))
    except NOT_ENCODABLE:
        return None
    # Tables promise that no field is null, and a metric has no attributes.
    if table.signal != "metric" and may_hold_null(text) and null_value(text):
        return None
    return text


def _encode_table(table: EventTable) -> list[bytes]:
    try:
        bodies = list(map(_encode, _rows(table)))
    except NOT_ENCODABLE:
        return [encode_event(event) for event in table]
    # Attributes come after the tags, so the search leaves out as many bytes as the tags have.
    tag_sizes = [tags.json_size for tags in table.tag_sets]
    if table.signal == "metric" or max(map(bytes.rfind, bodies, repeat(NULL), tag_sizes)) < 0:
        return bodies
    return [
        _encode_carefully(event) if null_value(body) else body
        for body, event in zip(bodies, table, strict=True)
    ]


def encode_event(event: Event) -> bytes:
    """Encode one event.

    Raises:
        EventError: JSON cannot carry the event; see `Bodies.refused`.
    """
    try:
        body = _encode(event)
        # A tag set holds only texts, so there is no null in it.
        skipped = event.tags.json_size if isinstance(event.tags, TagSet) else 0
        is_usual = (
            type(event.timestamp_ns) is int
            and event.fields
            and _PLAIN_TYPES.issuperset(map(type, event.fields.values()))
        )
        if is_usual and (body.rfind(NULL, skipped) < 0 or not null_value(body)):
            return body
    except NOT_ENCODABLE:
        pass
    return _encode_carefully(event)


def _encode_carefully(event: Event) -> bytes:
    """Encode an event that may hold something JSON cannot express, or refuse it."""
    for key, value in event.fields.items():
        is_finite = not isinstance(value, float) or math.isfinite(value)
        if not (is_finite and isinstance(portable(value), FieldValue)):
            # What else it holds is data, which no log may show.
            shown = value if isinstance(value, float | None) else f"a {type(value).__name__}"
            raise EventError(
                f"field {key!r} of measurement {event.measurement!r} is {shown}, "
                "allowed are finite numbers, texts and booleans"
            )
    if type(event.timestamp_ns) is not int:
        raise EventError(
            f"timestamp_ns of an event of measurement {event.measurement!r} is "
            f"{event.timestamp_ns!r}, an integer was expected"
        )
    if not event.fields:
        raise EventError(f"event of measurement {event.measurement!r} has no field")
    return _encode(
        msgspec.structs.replace(
            event,
            measurement=portable_text(event.measurement),
            tags=TagSet(event.tags),
            fields=portable(event.fields),
            correlation_id=None
            if event.correlation_id is None
            else portable_text(event.correlation_id),
            attributes=portable(event.attributes),
            metric=portable(event.metric),
        )
    )


class _Row(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An event of a table, in the form in which it is encoded.

    Attributes:
        tags: The JSON of its tag set.
        fields: The values, as an `object_type` object, which costs half as much as a dict.
    """

    measurement: str
    tags: msgspec.Raw
    fields: Any
    timestamp_ns: int
    schema_version: int
    correlation_id: str | None = None
    signal: str | None = None
    attributes: Mapping[str, Any] | None = None


class _Point(msgspec.Struct, frozen=True, gc=False, rename={"rest": "timestamp_ns"}):
    """A data point, in the form in which it is encoded; this costs half as much as a `_Row`.

    Attributes:
        tags: The JSON of its tag set.
        fields: As in `_Row`.
        rest: The JSON of the time, and of everything after it in the object.
    """

    measurement: str
    tags: msgspec.Raw
    fields: Any
    rest: msgspec.Raw


def _rows(table: EventTable) -> list[_Row] | list[_Point]:
    """Return the objects to encode, one for each event."""
    # Lists: an iterator would save 1 %, and msgspec 0.22 never frees one that it has encoded.
    if table.metric is not None:
        return _points(table, table.metric)
    return list(
        map(
            _Row,
            repeat(table.measurement),
            [tags.json for tags in table.tag_sets],
            map(object_type(table.keys), *table.columns),
            table.times_ns,
            repeat(SCHEMA_VERSION),
            table.trace_ids or repeat(None),
            repeat(table.signal),
            table.attributes or repeat(None),
        )
    )


def _points(table: EventTable, metric: MetricInfo) -> list[_Point]:
    cache = table.tag_sets.rendered
    tags_json = cache.get("json")
    if tags_json is None:
        tags_json = cache["json"] = [tags.json for tags in table.tag_sets]
    times_ns = table.times_ns
    end = f'"signal":"{table.signal}","metric":{_metric_json(metric)}'
    rests: Iterable[msgspec.Raw]
    if table.trace_ids is None and times_ns.count(times_ns[0]) == len(times_ns):
        # All points of a collection have the same time.
        rest = f'{times_ns[0]},"schema_version":{SCHEMA_VERSION},{end}'
        rests = repeat(msgspec.Raw(rest.encode()))
    else:
        traces: Iterable[str] = repeat("")
        if table.trace_ids:
            traces = [f'"correlation_id":"{one}",' if one else "" for one in table.trace_ids]
        rests = [
            msgspec.Raw(f'{time_ns},"schema_version":{SCHEMA_VERSION},{trace}{end}'.encode())
            for time_ns, trace in zip(times_ns, traces, strict=False)
        ]
    fields = map(object_type(table.keys), *table.columns)
    return list(map(_Point, repeat(table.measurement), tags_json, fields, rests))


@functools.lru_cache(maxsize=4_096)
def _metric_json(metric: MetricInfo) -> str:
    return encode_value(metric).decode()

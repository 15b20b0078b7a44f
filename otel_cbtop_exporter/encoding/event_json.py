"""Events as JSON, one object without a newline: the bytes of JSON Lines, Kafka and console.

What JSON or UTF-8 cannot carry has a rule here, for every encoder:

- non-finite floats in attributes become the strings "NaN", "Infinity" and "-Infinity", as in
  protobuf's JSON; in fields they are an error, because mapping has left them out already;
- bytes become base64; sequences and sets become arrays; mappings become objects;
- lone surrogates become U+FFFD;
- integers keep all their digits, beyond 64 bits too;
- any other object becomes its `str()`.
"""

from __future__ import annotations

import base64
import functools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec

from otel_cbtop_exporter.errors import EventError
from otel_cbtop_exporter.event_batch import EventRun, Events
from otel_cbtop_exporter.event_table import ColumnTable, EventTable, Row
from otel_cbtop_exporter.events import SCHEMA_VERSION, Event, MetricInfo
from otel_cbtop_exporter.tag_set import TagSet, object_type

__all__ = [
    "Bodies",
    "encode_event",
    "encode_events",
    "encode_joined",
    "encode_quoted",
    "encode_value",
    "quoted_texts",
]

# So that their text is not of a size for which malloc asks the kernel: 0.3 us a span.
_QUOTED_AT_ONCE = 128

# Nested deeper, a value is shown by its repr, which also ends containers that hold themselves.
_MAX_DEPTH = 32

# msgspec writes NaN, infinities and None alike as null. Most bodies hold no such word, and from
# behind, where the attributes are, is the quickest way to see that: 0.1 us a span.
_NULL = b"null"
_null_value = re.compile(rb"null(?<=[:\[,]null)[,\]}]").search  # what begins with a text is quick
_NOT_ENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


def _encode_hook(value: Any) -> Any:
    return value.json if type(value) is TagSet else _portable(value)


_encoder = msgspec.json.Encoder(enc_hook=_encode_hook)
_encode = _encoder.encode


class Bodies(NamedTuple):
    """What became of a sequence of events.

    Attributes:
        bodies: For each event one JSON object in UTF-8, without a newline; empty for one that is
            refused.
        refused: By position, a short stable reason and a sentence without values: its time is
            no integer, or it has no field, or one that is None, NaN or infinite.
    """

    bodies: list[bytes]
    refused: dict[int, tuple[str, str]]


def encode_events(events: Sequence[Event]) -> Bodies:
    """Encode events, made by mapping or by hand, in order."""
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


def encode_joined(table: EventTable | ColumnTable) -> bytes | None:
    """Encode a table as one text, of a line for each event, which ends in a newline.

    Returns:
        None if something in it has to be looked at by `encode_events`.
    """
    try:
        text = _encoder.encode_lines(_rows(table))
    except _NOT_ENCODABLE:
        return None
    # No field is null, by the table's promise, and a metric has no attributes.
    if table.signal != "metric" and text.rfind(_NULL) >= 0 and _null_value(text):
        return None
    return text


def _encode_table(table: EventTable | ColumnTable) -> list[bytes]:
    try:
        bodies = list(map(_encode, _rows(table)))
    except _NOT_ENCODABLE:
        return [encode_event(event) for event in table]
    # Attributes come behind the tags.
    tag_sizes = [tags.json_size for tags in table.tag_sets]
    if table.signal == "metric" or max(map(bytes.rfind, bodies, repeat(_NULL), tag_sizes)) < 0:
        return bodies
    return [
        _encode_carefully(event) if _null_value(body) else body
        for body, event in zip(bodies, table, strict=True)
    ]


class _Point(msgspec.Struct, frozen=True, gc=False, rename={"rest": "timestamp_ns"}):
    """A data point as it is encoded, which takes half of what it takes as a `Row`.

    Attributes:
        tags: The JSON of its tag set.
        fields: As in `Row`.
        rest: The time, and all that is behind it in the object.
    """

    measurement: str
    tags: msgspec.Raw
    fields: Any
    rest: msgspec.Raw


def _rows(table: EventTable | ColumnTable) -> Sequence[Row | _Point]:
    if isinstance(table, EventTable):
        return table.rows
    if table.metric is not None:
        return _points(table, table.metric)
    return list(
        map(
            Row,
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


def _points(table: ColumnTable, metric: MetricInfo) -> list[_Point]:
    kept = table.tag_sets.rendered
    tags_json = kept.get("json")
    if tags_json is None:
        tags_json = kept["json"] = [tags.json for tags in table.tag_sets]
    times_ns = table.times_ns
    end = f'"signal":"{table.signal}","metric":{_metric_json(metric)}'
    rests: Iterable[msgspec.Raw]
    if table.trace_ids is None and times_ns.count(times_ns[0]) == len(times_ns):
        # A collection has one time.
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


def encode_event(event: Event) -> bytes:
    """Encode one event.

    Raises:
        EventError: It cannot be carried; see `Bodies.refused`.
    """
    try:
        body = _encode(event)
        # A tag set is text alone, so no null is in there.
        skipped = event.tags.json_size if isinstance(event.tags, TagSet) else 0
        is_event = event.fields and type(event.timestamp_ns) is int
        if is_event and (body.rfind(_NULL, skipped) < 0 or not _null_value(body)):
            return body
    except _NOT_ENCODABLE:
        pass
    return _encode_carefully(event)


def encode_value(value: Any) -> bytes:
    """Encode an attribute map, or any attribute value, by the rules of this module."""
    try:
        body = _encode(value)
        if body.rfind(_NULL) < 0 or not (body == _NULL or _null_value(body)):
            return body
    except _NOT_ENCODABLE:
        pass
    return _encode(_portable(value))


def encode_quoted(value: Any) -> str:
    """Encode a value, and its JSON once more as a JSON text: a string field of line protocol.

    JSON has no control characters, so that escapes exactly what line protocol has escapes for:
    quotation marks and backslashes.
    """
    try:
        body = _encode(value)
        if body.rfind(_NULL) >= 0:
            body = encode_value(value)
    except _NOT_ENCODABLE:
        body = encode_value(value)
    return _encode(body.decode()).decode()


def quoted_texts(values: Sequence[Any]) -> list[str]:
    """Return for each value what `encode_quoted` does, without the quotation marks."""
    texts: list[str] = []
    for start in range(0, len(values), _QUOTED_AT_ONCE):
        some = values[start : start + _QUOTED_AT_ONCE]
        try:
            text = _encoder.encode_lines(some)
        except _NOT_ENCODABLE:
            text = _NULL
        if text.rfind(_NULL) >= 0:
            texts += [encode_quoted(value)[1:-1] for value in some]
            continue
        texts += text.replace(b"\\", b"\\\\").replace(b'"', b'\\"').decode().split("\n")
        texts.pop()
    return texts


def _encode_carefully(event: Event) -> bytes:
    """Encode an event that holds something JSON has no word for."""
    for key, value in event.fields.items():
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise EventError(
                f"field {key!r} of measurement {event.measurement!r} is {value!r}, "
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
            measurement=_text(event.measurement),
            tags=TagSet(event.tags),
            fields=_portable(event.fields),
            correlation_id=None if event.correlation_id is None else _text(event.correlation_id),
            attributes=None if event.attributes is None else _portable(event.attributes),
            metric=_portable(event.metric),
        )
    )


def _portable(value: Any, depth: int = 0) -> Any:
    """Rebuild a value from what JSON has, by the rules of this module."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, MetricInfo):
        texts = {"unit": _portable(value.unit), "description": _portable(value.description)}
        return msgspec.structs.replace(value, **texts)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if depth >= _MAX_DEPTH:
        return _shown(value)
    if isinstance(value, Mapping):
        return {_shown(key): _portable(part, depth + 1) for key, part in value.items()}
    # Not every iterable: a generator would be used up, which is the application's to do, and
    # one that never ends would never let go of this thread.
    if isinstance(value, Collection):
        return [_portable(part, depth + 1) for part in value]
    return _shown(value)


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _text(value: str) -> str:
    # str() also turns a subclass, which msgspec may refuse, into a plain str.
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _shown(value: Any) -> str:
    try:
        return _text(str(value))
    except Exception:  # noqa: BLE001  a foreign __str__ may raise anything, and must not reach the application
        return f"<{type(value).__name__}>"

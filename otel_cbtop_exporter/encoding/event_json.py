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
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from otel_cbtop_exporter.errors import EventError
from otel_cbtop_exporter.events import Event, TagSet

__all__ = ["encode_event", "encode_events", "encode_value"]

# Nested deeper, a value is shown by its repr, which also ends containers that hold themselves.
_MAX_DEPTH = 32

# msgspec writes NaN, infinities and None alike as null. Most bodies hold no such word, and a
# pattern without a choice, behind the tags, is the quickest way to see that: 0.3 us a span, where
# `in` over all of it takes 0.7.
_null_word = re.compile(rb"null").search
_null_value = re.compile(rb"[:\[,]null[,\]}]").search
_NOT_ENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


class _Wire(msgspec.Struct, omit_defaults=True, gc=False):
    """An event whose tags are JSON already, which msgspec encodes without asking back."""

    measurement: str
    tags: Any
    fields: Any
    timestamp_ns: int
    schema_version: int
    correlation_id: str | None = None
    signal: str | None = None
    attributes: Any = None
    metric: Any = None


def _encode_hook(value: Any) -> Any:
    return value.json if type(value) is TagSet else _portable(value)


_encode = msgspec.json.Encoder(enc_hook=_encode_hook).encode


def encode_events(events: Iterable[Event]) -> list[bytes | EventError]:
    """Encode events, in order.

    Args:
        events: Made by mapping or by hand.

    Returns:
        For each event one JSON object in UTF-8, without a newline; or an `EventError`, if its
        time is no integer, or if it has no field, or one that is None, NaN or infinite.
    """
    bodies: list[bytes | EventError] = []
    for event in events:
        tags: Any = event.tags
        fields = event.fields
        time_ns = event.timestamp_ns
        is_event = bool(fields) and type(time_ns) is int
        skipped = 0
        if type(tags) is TagSet:
            tags, skipped = tags.json, tags.json_size  # text alone, so no null is in there
        try:
            body = _encode(
                _Wire(
                    event.measurement,
                    tags,
                    fields,
                    time_ns,
                    event.schema_version,
                    event.correlation_id,
                    event.signal,
                    event.attributes,
                    event.metric,
                )
            )
            if is_event and not _null_word(body, skipped):
                bodies.append(body)
                continue
            careful = not is_event or _null_value(body) is not None
        except _NOT_ENCODABLE:
            careful = True
        bodies.append(_encode_carefully(event) if careful else body)
    return bodies


def encode_event(event: Event) -> bytes:
    """Encode one event, as `encode_events` does.

    Raises:
        EventError: As there.
    """
    (body,) = encode_events((event,))
    if isinstance(body, EventError):
        raise body
    return body


def encode_value(value: Any) -> bytes:
    """Encode an attribute map, or any attribute value, by the rules of this module."""
    try:
        body = _encode(value)
        if not _null_word(body) or not (body == b"null" or _null_value(body)):
            return body
    except _NOT_ENCODABLE:
        pass
    return _encode(_portable(value))


def _encode_carefully(event: Event) -> bytes | EventError:
    """Encode an event that holds something JSON has no word for."""
    for key, value in event.fields.items():
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return EventError(
                f"field {key!r} of measurement {event.measurement!r} is {value!r}, "
                "allowed are finite numbers, texts and booleans"
            )
    if type(event.timestamp_ns) is not int:
        return EventError(
            f"timestamp_ns of an event of measurement {event.measurement!r} is "
            f"{event.timestamp_ns!r}, an integer was expected"
        )
    if not event.fields:
        return EventError(f"event of measurement {event.measurement!r} has no field")
    return _encode(
        msgspec.structs.replace(
            event,
            measurement=_text(event.measurement),
            tags=TagSet(event.tags),
            fields=_portable(event.fields),
            correlation_id=None if event.correlation_id is None else _text(event.correlation_id),
            attributes=None if event.attributes is None else _portable(event.attributes),
            metric=None if event.metric is None else _portable_metric(event.metric),
        )
    )


def _portable_metric(metric: Any) -> Any:
    texts = {
        name: _text(text)
        for name in ("unit", "description")
        if isinstance(text := getattr(metric, name), str)
    }
    return msgspec.structs.replace(metric, **texts)


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

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
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from otel_cbtop_exporter.errors import EventError
from otel_cbtop_exporter.events import Event, TagSet

__all__ = ["encode_event", "encode_value"]

# Nested deeper, a value is shown by its repr, which also ends containers that hold themselves.
_MAX_DEPTH = 32

_NULL = re.compile(rb"[:\[,]null[,\]}]")
_NOT_ENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


def _encode_hook(value: Any) -> Any:
    if type(value) is TagSet:
        return value.json
    return _portable(value)


_encoder = msgspec.json.Encoder(enc_hook=_encode_hook)
_encode = _encoder.encode


def encode_event(event: Event) -> bytes:
    """Encode one event.

    Args:
        event: Made by mapping or by hand.

    Returns:
        One JSON object in UTF-8, without a newline.

    Raises:
        EventError: The event has no field, or one that is None, NaN or infinite.
    """
    try:
        body = _encode(event)
    except _NOT_ENCODABLE:
        return _encode(_portable_event(event))
    # msgspec writes NaN, infinities and None alike as null, which is rare enough to look again.
    if b"null" in body and _NULL.search(body):
        return _encode(_portable_event(event))
    if not event.fields:
        raise EventError(f"event of measurement {event.measurement!r} has no field")
    return body


def encode_value(value: Any) -> bytes:
    """Encode an attribute map, or any attribute value, by the rules of this module."""
    try:
        body = _encode(value)
    except _NOT_ENCODABLE:
        return _encode(_portable(value))
    if b"null" in body and (body == b"null" or _NULL.search(body)):
        return _encode(_portable(value))
    return body


def _portable_event(event: Event) -> Event:
    for key, value in event.fields.items():
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise EventError(
                f"field {key!r} of measurement {event.measurement!r} is {value!r}, "
                "allowed are finite numbers, texts and booleans"
            )
    if not event.fields:
        raise EventError(f"event of measurement {event.measurement!r} has no field")
    return msgspec.structs.replace(
        event,
        measurement=_text(event.measurement),
        tags=TagSet(event.tags),
        fields=_portable(event.fields),
        correlation_id=None if event.correlation_id is None else _text(event.correlation_id),
        attributes=None if event.attributes is None else _portable(event.attributes),
        metric=None if event.metric is None else _portable_metric(event.metric),
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
    if isinstance(value, Iterable):
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

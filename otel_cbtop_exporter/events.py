"""The event, schema version 1: the one flat record that every signal becomes.

Belongs here: the type, its JSON Schema, decoding with clear errors, and making an event by
hand. Not here: how OpenTelemetry data becomes events (`mapping/`), how events become bytes
(`encoding/`).
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from otel_cbtop_exporter.errors import EventError
from otel_cbtop_exporter.tag_set import TagSet

__all__ = [
    "MAX_INTEGER_BITS",
    "OF_A_TRACE",
    "SCHEMA_VERSION",
    "SIGNAL_NAMES",
    "Buckets",
    "Event",
    "FieldValue",
    "MetricInfo",
    "Signal",
    "decode_event",
    "event_from_sample",
    "event_schema",
]

SCHEMA_VERSION = 1

# About 4,200 digits. Python refuses to write more than 4,300 digits in decimal.
MAX_INTEGER_BITS = 14_000

FieldValue = int | float | str | bool
Signal = Literal["metric", "exemplar", "span", "span_event", "span_link", "log"]

SIGNAL_NAMES: dict[Signal | None, str] = {
    "span": "spans",
    "span_event": "spans",
    "span_link": "spans",
    "log": "logs",
    "metric": "metrics",
    "exemplar": "metrics",
    None: "metrics",  # made by hand: a measurement like any other
}
"""What replaces `{signal}` in the name of a bucket or a topic."""

OF_A_TRACE: frozenset[Signal | None] = frozenset({"span", "span_event", "span_link", "log"})
"""Signals whose events are looked up by trace id; other events belong to a series."""


class Buckets(msgspec.Struct, frozen=True):
    """One side of an exponential histogram, exactly as the SDK gave it.

    Attributes:
        offset: Index of the first bucket.
        counts: Observations in each bucket, not cumulative.
    """

    offset: int
    counts: list[int]


class MetricInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a reader needs to know of a metric to use its numbers.

    Attributes:
        type: Which of OpenTelemetry's point kinds this is.
        unit: UCUM, as the instrument gave it.
        temporality: Absent on gauges.
        monotonic: Of sums only.
        description: As the instrument gave it.
        scale: Of exponential histograms: a bucket's base is 2 ** (2 ** -scale).
        positive: Of exponential histograms.
        negative: Of exponential histograms.
    """

    type: Literal["sum", "gauge", "histogram", "exponential_histogram"]
    unit: str | None = None
    temporality: Literal["delta", "cumulative"] | None = None
    monotonic: bool | None = None
    description: str | None = None
    scale: int | None = None
    positive: Buckets | None = None
    negative: Buckets | None = None


# gc=False: events hold plain data and never a reference back to themselves, and a batch of
# thousands of tracked objects makes the garbage collector run in the application's time.
class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One telemetry event of schema version 1.

    The names and meanings of the first six keys are those of cbtop's event stream.

    Attributes:
        measurement: A metric's name, or `spans`, `span_events`, `span_links`, `logs`,
            `exemplars`.
        tags: Low-cardinality dimensions.
        fields: The values, at least one; never NaN or infinite, never None.
        timestamp_ns: Nanoseconds since the Unix epoch.
        schema_version: Always `SCHEMA_VERSION` on events made here.
        correlation_id: The trace id as 32 lower-case hex digits, or what a caller gave.
        signal: What the event was made of; None on hand-made events.
        attributes: Typed attributes, any JSON value.
        metric: Type, unit and temporality of a metric point.
    """

    measurement: str
    tags: Mapping[str, str]
    fields: dict[str, FieldValue]
    timestamp_ns: int
    # A factory, because omit_defaults would omit a plain default from the JSON.
    schema_version: int = msgspec.field(default_factory=lambda: SCHEMA_VERSION)
    correlation_id: str | None = None
    signal: Signal | None = None
    attributes: Mapping[str, Any] | None = None
    metric: MetricInfo | None = None


class _Version(msgspec.Struct):
    schema_version: int


_decoder = msgspec.json.Decoder(Event)
_version_decoder = msgspec.json.Decoder(_Version)


def decode_event(line: bytes | str) -> Event:
    """Read one event from its JSON.

    Unknown keys are ignored, so that a later writer may add some.

    Args:
        line: One JSON object, with or without a newline at the end.

    Returns:
        The event; `tags` is a plain dict.

    Raises:
        EventError: The line is not JSON, a key is missing or has the wrong type, there is no
            field, or this reader does not know its schema version.
    """
    try:
        version = _version_decoder.decode(line).schema_version
        if not 1 <= version <= SCHEMA_VERSION:
            raise EventError(
                f"schema_version is {version}, this reader knows 1 to {SCHEMA_VERSION}; "
                "upgrade otel-cbtop-exporter to read it"
            )
        event = _decoder.decode(line)
    except msgspec.DecodeError as error:
        where = _wrong_key(line, str(error))
        raise EventError(
            f"not an event of schema version {SCHEMA_VERSION}: {error}{where}"
        ) from error
    except UnicodeDecodeError as error:
        raise EventError(f"not an event: the line is not UTF-8: {error}") from error
    except RecursionError:
        raise EventError("not an event: it is nested too deep to be read") from None
    if not event.fields:
        raise EventError("not an event: `fields` is empty, at least one was expected")
    return event


def _wrong_key(line: bytes | str, error: str) -> str:
    """Name the wrong key of `tags` or `fields`, which msgspec writes only as `[...]`; or ""."""
    for group, types in (("tags", str), ("fields", FieldValue)):
        if f"`$.{group}[...]`" in error:
            found = msgspec.json.decode(line).get(group)  # the last one, if the key occurs twice
            pairs = found.items() if isinstance(found, dict) else ()
            wrong = [key for key, value in pairs if not isinstance(value, types)]
            return f", key {wrong[0]!r}" if wrong else ""
    return ""


def event_from_sample(
    metric: str,
    value: float,
    tags: Mapping[str, str] | None = None,
    *,
    timestamp_ns: int | None = None,
    correlation_id: str | None = None,
) -> Event:
    """Make the event of one performance sample, as cbtop's event stream does.

    Args:
        metric: The measurement.
        value: A finite number; it becomes the field `value`.
        tags: Dimensions; those with an empty text are left out.
        timestamp_ns: Nanoseconds since the Unix epoch; now by default.
        correlation_id: What ties this sample to others.

    Returns:
        An event without a signal.

    Raises:
        EventError: The metric has no name, the value is not a finite number, or has over 4,200
            digits, the time is not an integer, or the correlation id or a tag is not a text.
    """
    if not metric or not isinstance(metric, str):
        raise EventError(f"metric must be a name, got {metric!r}")
    if correlation_id is not None and not isinstance(correlation_id, str):
        raise EventError(f"correlation_id of {metric!r} must be a text, got {correlation_id!r}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise EventError(f"value of {metric!r} must be a finite number, got {value!r}")
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise EventError(f"value of {metric!r} has over 4,200 digits, which nobody can write")
    if timestamp_ns is not None and type(timestamp_ns) is not int:
        # A float of nanoseconds is off by about a hundred of them, and no sink takes one.
        raise EventError(f"timestamp_ns of {metric!r} must be an integer, got {timestamp_ns!r}")
    for key, text in (tags or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise EventError(f"tag {key!r} of {metric!r} must be a text, got {text!r}")
    return Event(
        measurement=metric,
        tags=TagSet(tags or {}),
        fields={"value": value},
        timestamp_ns=time.time_ns() if timestamp_ns is None else timestamp_ns,
        correlation_id=correlation_id,
    )


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # isfinite() overflows on a huge integer


def event_schema() -> dict[str, Any]:
    """Generate the JSON Schema of `Event` that is published as `schemas/event_v1.json`.

    An absent value is left out of the JSON, so the `null` that stands for Python's None is not
    part of the schema.
    """
    (schema,), definitions = msgspec.json.schema_components([Event], ref_template="#/$defs/{name}")
    definitions = {name: _without_null(part) for name, part in definitions.items()}
    event = definitions["Event"]
    event["properties"]["fields"]["minProperties"] = 1
    event["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    event["required"].append("schema_version")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"otel_cbtop_exporter event, schema version {SCHEMA_VERSION}",
        **schema,
        "$defs": definitions,
    }


def _without_null(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_null(part) for part in schema if part != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    schema = {k: _without_null(v) for k, v in schema.items() if (k, v) != ("default", None)}
    if isinstance(schema.get("description"), str):  # Python 3.13 cleans docstrings, others do not
        schema["description"] = inspect.cleandoc(schema["description"])
    if "enum" in schema:
        schema["enum"] = [value for value in schema["enum"] if value is not None]
    if len(schema.get("anyOf", ())) == 1:
        schema.update(schema.pop("anyOf")[0])
    return schema

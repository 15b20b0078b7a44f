r"""Names and texts in a form that InfluxDB's line protocol can carry and InfluxDB can read back.

InfluxDB accepts more than it can serve: some keys make it refuse the line, some are stored and
then break every query of the measurement, and some texts end the line early, so that the rest is
read as a line of its own. Every rule here was found on a real 1.8.3 and 2.7.12.

- A reserved key gets a trailing `_`, and so does a reserved key that already ends in underscores,
  so that two different keys never become the same.
- In names and tag values, line breaks and tabs become `\n`, `\r` and `\t`, and other control
  characters become `\x00` and so on. A backslash that ends the text, or stands before a space, a
  comma, an equals sign or a quotation mark, becomes `/`: InfluxDB has no escape for it there, and
  with two in a row its search for the end of the line loses count and swallows the next lines.
- A string field carries everything but NUL, which breaks readers and becomes U+FFFD.
- Lone surrogates become U+FFFD, as everywhere.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from otel_cbtop_exporter.encoding.json_values import encode_quoted
from otel_cbtop_exporter.event_table import ID_FIELDS, TEXT_FIELDS
from otel_cbtop_exporter.events import MetricInfo
from otel_cbtop_exporter.tag_set import portable_text

__all__ = [
    "INTEGER_FIELDS",
    "TRACE_ID_TAG",
    "cut_text",
    "escaped",
    "field_name",
    "measurement_text",
    "metric_text",
    "string_text",
    "string_texts",
    "tag_name",
]

TRACE_ID_TAG = "trace_id_prefix"

# Counts, times and flags that we define ourselves. Their type never changes, so they are integers.
# Every other number is a float, because InfluxDB would refuse `1.5` after an integer `1`.
INTEGER_FIELDS = frozenset(
    {
        "count",
        "duration_ns",
        "error",
        "observed_timestamp_ns",
        "original_timestamp_ns",
        "otel.dropped_attributes_count",
        "otel.dropped_events_count",
        "otel.dropped_links_count",
        "scale",
        "severity_number",
        "start_time_ns",
        "zero_count",
    }
)
_OUR_FIELDS = (
    INTEGER_FIELDS
    | ID_FIELDS
    | TEXT_FIELDS
    | {"attributes", "correlation_id", "max", "metric", "min", "sum", "value"}
)
# Keys that InfluxDB refuses, or stores and then cannot query; the empty key is one. Those of the
# second line mean something else in InfluxQL, and so does `time` in any case.
_INFLUXDB_KEYS = frozenset(
    {"", "_time", "_start", "_stop", "_value", "_field", "_measurement"}
    | {"_fieldKey", "_name", "_seriesKey", "_tagKey", "_tagValue"}
)
# A tag and a field of the same name, even in different points, make `pivot` fail, and hide the
# tag from InfluxQL.
_RESERVED_TAGS = _INFLUXDB_KEYS | _OUR_FIELDS | {"schema_version", TRACE_ID_TAG}
# The fields and the tag that the encoder itself adds, as well.
_RESERVED_FIELDS = _INFLUXDB_KEYS | {
    "attributes",
    "correlation_id",
    "metric",
    "original_timestamp_ns",
    "schema_version",
}
_BUCKET_FIELD = ("le_", "in_")

_NOT_PLAIN = re.compile(r"[\x00-\x20\x7f,=\\]|[^\x00-\x7f]").search
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNSAFE_BACKSLASH = re.compile(r"\\(?=[ ,=\"]|\Z)")
_encoder = msgspec.json.Encoder()
_OTHER_ESCAPE = re.compile(rb'\\[^"]').search
_MAX_KEY_TEXTS = 4_096
_NAMED_CONTROLS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


@functools.lru_cache(maxsize=4096)
def measurement_text(measurement: str) -> str:
    """Render a measurement; it may hold any text.

    A line that begins with `#` is a comment, which InfluxDB answers with 204 and drops. So such a
    name gets a leading `_`, and so does an empty one.
    """
    if not measurement.strip("_") or measurement.lstrip("_").startswith("#"):
        measurement = f"_{measurement}"
    return _safe(measurement).replace(",", "\\,").replace(" ", "\\ ")


@functools.lru_cache(maxsize=4096)
def tag_name(key: str) -> str:
    """Return the name under which a tag is stored, not yet escaped."""
    if _is_reserved(key, _RESERVED_TAGS) or key.startswith(_BUCKET_FIELD):
        key += "_"
    return _safe(key)


def field_name(key: str) -> str:
    """Return the name under which a field is stored, not yet escaped."""
    return _safe(f"{key}_" if _is_reserved(key, _RESERVED_FIELDS) else key)


def _is_reserved(key: str, names: frozenset[str]) -> bool:
    bare = key.rstrip("_")
    return bare in names or bare.lower() == "time"


class _KeyTexts(dict[str, str]):
    """Caches escaped texts; drops all of them when there are too many."""

    def __missing__(self, text: str) -> str:
        # A str Enum member equals its text: stored as it is, it would be found for the text, too.
        text = str.__str__(text)
        if len(self) >= _MAX_KEY_TEXTS:
            self.clear()
        made = text
        if _NOT_PLAIN(text) is not None:
            made = _safe(text).replace(",", "\\,").replace("=", "\\=").replace(" ", "\\ ")
        self[text] = made
        return made


escaped = _KeyTexts().__getitem__
"""Escape a tag's name or value, or a field's name."""


def string_text(value: str) -> str:
    """Render the value of a string field, with its quotes."""
    if value.isalnum():  # mostly ids
        return f'"{value}"'
    if not value.isprintable():
        value = _valid(value).replace("\x00", "\ufffd")
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'


def string_texts(values: Sequence[str]) -> list[str]:
    """Render each text as `string_text` does, without the quotation marks."""
    try:
        encoded = _encoder.encode_lines(values)
    except UnicodeEncodeError:
        return [string_text(value)[1:-1] for value in values]
    # Unlike line protocol, JSON also escapes control characters.
    if b"\\" in encoded and _OTHER_ESCAPE(encoded.replace(b"\\\\", b"")):
        return [string_text(value)[1:-1] for value in values]
    # The only line breaks left are those between the texts. Python searches faster from the end.
    return encoded.decode()[1:-2].rsplit('"\n"')


def cut_text(value: str, max_bytes: int) -> str:
    """Cut a text, between two characters, to at most `max_bytes` bytes of UTF-8."""
    encoded = _valid(value).encode()
    return encoded[:max_bytes].decode("utf-8", "ignore") if len(encoded) > max_bytes else value


def _safe(text: str) -> str:
    """Replace the characters for which line protocol has no escape."""
    text = _CONTROL.sub(_spelled_out, _valid(text))
    return _UNSAFE_BACKSLASH.sub("/", text)


def _spelled_out(match: re.Match[str]) -> str:
    control = match.group()
    return _NAMED_CONTROLS.get(control) or f"\\x{ord(control):02x}"


def _valid(text: str) -> str:
    """Replace lone surrogates."""
    return text if text.isascii() else portable_text(text)


def metric_text(metric: MetricInfo) -> str:
    """Render a `MetricInfo` as a string field; the points of a stream share one text."""
    # Except those of an exponential histogram, which all differ.
    if metric.scale is None:
        with suppress(TypeError):  # a unit of a foreign type may not be hashable
            return _shared_metric_text(metric)
    return encode_quoted(metric)


_shared_metric_text = functools.lru_cache(maxsize=4_096)(encode_quoted)

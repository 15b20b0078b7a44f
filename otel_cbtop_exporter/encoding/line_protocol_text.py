r"""Names and texts as InfluxDB's line protocol can carry them, and read them again.

InfluxDB accepts more than it can serve: some keys make it refuse the line, some are stored and
then break every query of the measurement, and some texts end the line early, so that what
follows is read as a line of its own. Every rule here was found on a real 1.8.3 and 2.7.12.

- A reserved key gets a trailing `_`, and so does that key with underscores behind it, so that
  two different keys never become one.
- In names and tag values a line break and a tab become `\n`, `\r` and `\t`, other control
  characters `\x00`, and a backslash that ends the text or stands before a space, a comma, an
  equals sign or a quotation mark becomes `/`: InfluxDB has no escape for it there, and with two
  in a row its search for the end of the line loses count and swallows the next lines.
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

# Counts, times and flags of our own making. Their type is fixed once and for all, so they are
# integers; every other number is a float, because `1` and later `1.5` would be refused.
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
# What InfluxDB refuses as a key, or stores and then cannot query. An empty key is among them.
_INFLUXDB_KEYS = frozenset(
    {"", "time", "_time", "_start", "_stop", "_value", "_field", "_measurement"}
)
# A tag and a field of one name, even in different points, make `pivot` fail and hide the tag
# from InfluxQL.
_RESERVED_TAGS = _INFLUXDB_KEYS | _OUR_FIELDS | {"schema_version", TRACE_ID_TAG}
# Fields that the encoder itself adds, and the tag that it adds.
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

    A line that begins with `#` is a comment, which InfluxDB answers with 204 and drops, so
    such a name gets a leading `_`.
    """
    if not measurement.strip("_") or measurement.lstrip("_").startswith("#"):
        measurement = f"_{measurement}"
    return _safe(measurement).replace(",", "\\,").replace(" ", "\\ ")


@functools.lru_cache(maxsize=4096)
def tag_name(key: str) -> str:
    """Return the name under which a tag is stored."""
    if key.rstrip("_") in _RESERVED_TAGS or key.startswith(_BUCKET_FIELD):
        key += "_"
    return _safe(key)


def field_name(key: str) -> str:
    """Return the name under which a field is stored."""
    return _safe(f"{key}_" if key.rstrip("_") in _RESERVED_FIELDS else key)


class _KeyTexts(dict[str, str]):
    """Rendered texts, by text; forgets all when there are too many."""

    def __missing__(self, text: str) -> str:
        # A member of an Enum of texts is equal to its text, and would be found for it.
        text = str.__str__(text)
        if len(self) >= _MAX_KEY_TEXTS:
            self.clear()
        made = text
        if _NOT_PLAIN(text) is not None:
            made = _safe(text).replace(",", "\\,").replace("=", "\\=").replace(" ", "\\ ")
        self[text] = made
        return made


escaped = _KeyTexts().__getitem__
"""Render a tag's name or value, or a field's name."""


def string_text(value: str) -> str:
    """Render the value of a string field, with its quotes."""
    if value.isalnum():  # ids, most of all
        return f'"{value}"'
    if not value.isprintable():
        value = _valid(value).replace("\x00", "\ufffd")
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'


def string_texts(values: Sequence[str]) -> list[str]:
    """Return for each text what `string_text` does, without the quotation marks."""
    try:
        encoded = _encoder.encode_lines(values)
    except UnicodeEncodeError:
        return [string_text(value)[1:-1] for value in values]
    # JSON has more escapes than line protocol: for control characters.
    if b"\\" in encoded and _OTHER_ESCAPE(encoded.replace(b"\\\\", b"")):
        return [string_text(value)[1:-1] for value in values]
    # So it has no line break but those between the texts.
    return encoded.decode()[1:-2].split('"\n"')


def cut_text(value: str, max_bytes: int) -> str:
    """Cut a text at a character so that it has at most so many bytes of UTF-8."""
    encoded = _valid(value).encode()
    return encoded[:max_bytes].decode("utf-8", "ignore") if len(encoded) > max_bytes else value


def _safe(text: str) -> str:
    """Replace what no escape of line protocol covers."""
    text = _CONTROL.sub(_spelled_out, _valid(text))
    return _UNSAFE_BACKSLASH.sub("/", text)


def _spelled_out(match: re.Match[str]) -> str:
    control = match.group()
    return _NAMED_CONTROLS.get(control) or f"\\x{ord(control):02x}"


def _valid(text: str) -> str:
    """Replace lone surrogates."""
    return text if text.isascii() else portable_text(text)


def metric_text(metric: MetricInfo) -> str:
    """Return what a metric is as a string field; the points of a stream share one text."""
    # Those of an exponential histogram are all different.
    if metric.scale is None:
        with suppress(TypeError):  # a foreign unit need not be hashable
            return _shared_metric_text(metric)
    return encode_quoted(metric)


_shared_metric_text = functools.lru_cache(maxsize=4_096)(encode_quoted)

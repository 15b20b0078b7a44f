"""Which lines of a request InfluxDB refused, and why, read from its answer.

Belongs here: the messages of 1.8, 2 and 3 about refused lines. Not here: all other answers
(`influxdb_answers.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from otel_cbtop_exporter.sinks.base import Record

__all__ = ["ServerRefusal", "read_refusal"]

_PARSE_ERROR = "unable to parse '"
_CONFLICT = re.compile(
    r'input field ("(?:[^"\\]|\\.)*") on measurement ("(?:[^"\\]|\\.)*") '
    r"is type (\w+), already exists as type (\w+)"
)
# InfluxDB 3 calls fields columns, and identifies lines by number.
_COLUMN_CONFLICT = re.compile(
    r"invalid column type for column '(.*)', expected \S*::(\w+), got \S*::(\w+)", re.DOTALL
)
_DROPPED = re.compile(r"dropped=(\d+)")
_LOWER_BOUND = re.compile(
    r"outside retention policy.* Lower Bound at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?Z",
    re.DOTALL,
)

# A line: the measurement ends at an unescaped comma or space, and the fields begin after the
# first unescaped space.
_MEASUREMENT = re.compile(r"(?:[^\\ ,]|\\.)+", re.DOTALL)
_HEAD = re.compile(r"(?:[^\\ ]|\\.)+ ", re.DOTALL)
_FIELD = re.compile(r'((?:[^\\=,]|\\.)+)=("(?:[^"\\]|\\.)*"|[^, ]+),?', re.DOTALL)
_ESCAPED = re.compile(r"\\([ ,=])")
# How many separators are tried as the one between a quoted line and its reason, because a value in
# the line may hold the separator too.
_MOST_SEPARATORS = 100


class ServerRefusal(NamedTuple):
    """What a server said about the lines that it refused.

    Attributes:
        reason: A short stable word for counters.
        error: A sentence without data; "" if there is nothing better than the server's words.
        detail: For the dead letters; may quote data.
        named: The refused lines by position, each with its own detail or ""; empty if the
            answer does not say which they are.
    """

    reason: str
    error: str
    detail: str
    named: dict[int, str]


def read_refusal(text: str, message: str, records: Sequence[Record]) -> ServerRefusal:
    """Find the refused lines in a 400 or a 422.

    Args:
        text: The answer's body.
        message: The server's message in the body.
        records: What was sent, at least one.
    """
    dropped = 0
    if _PARSE_ERROR in message:
        # The message quotes every refused line. A count is not looked for, because a quoted line
        # may hold any number.
        error = "InfluxDB cannot read some lines"
        refusal = ServerRefusal("invalid", error, message, _unparsed(records, message))
    elif (numbered := _numbered(text)) and not any(b"\n" in record.body for record in records):
        refusal = _by_number(numbered, message, records)
    else:
        dropped = _dropped(message)
        refusal = _by_cause(message, records)
    if dropped == len(records) or len(records) == 1:
        named = {position: refusal.named.get(position, "") for position in range(len(records))}
        return refusal._replace(named=named)
    if dropped and dropped != len(refusal.named):
        # The count disagrees: there may be other causes, or other shards with other types.
        return refusal._replace(named={})
    return refusal


def _by_cause(message: str, records: Sequence[Record]) -> ServerRefusal:
    """Read the message of a partial write in 1.8 or 2, which names one cause."""
    conflict = _CONFLICT.search(message)
    if conflict is not None:
        field, measurement, ours, theirs = conflict.groups()
        error = _conflict_error(f"{field} of measurement {measurement}", ours, theirs)
        detail = f"{error} (docs/influxdb.md says how). InfluxDB: {message}"
        return ServerRefusal("field_type_conflict", error, detail, _with_field(records, conflict))
    bound = _LOWER_BOUND.search(message)
    if bound is not None or "beyond retention policy" in message:
        error = "points are older than the bucket keeps them"
        named = _older_than(records, bound) if bound is not None else {}
        return ServerRefusal("outside_retention", error, message, named)
    if "limit exceeded" in message:  # 1.8's limits: series of a database, values of a tag
        return ServerRefusal("limit_exceeded", "", message, {})
    error = "InfluxDB cannot read some lines" if "partial write" in message else ""
    return ServerRefusal("invalid", error, message, {})


def _numbered(text: str) -> list[tuple[int, str]]:
    """Return the line numbers (from 1) and the reasons that InfluxDB 3 gives."""
    try:
        answer: Any = json.loads(text)
        found = answer["data"]
        pairs = [(entry["line_number"], str(entry["error_message"])) for entry in found]
    except (ValueError, TypeError, KeyError):  # cut off at the limit, or from another server
        return []
    return [(number, reason) for number, reason in pairs if type(number) is int]


def _by_number(
    numbered: Sequence[tuple[int, str]], message: str, records: Sequence[Record]
) -> ServerRefusal:
    """Return the lines refused for the same kind of reason as the first; others are sent again."""
    conflict = _COLUMN_CONFLICT.search(numbered[0][1])
    named = {
        number - 1: reason
        for number, reason in numbered
        if 0 < number <= len(records)
        and (_COLUMN_CONFLICT.search(reason) is None) == (conflict is None)
    }
    if conflict is None:
        return ServerRefusal("invalid", "InfluxDB cannot read some lines", message, named)
    column, theirs, ours = conflict.groups()
    error = _conflict_error(json.dumps(column, ensure_ascii=False), ours, theirs)
    return ServerRefusal("field_type_conflict", error, message, named)


def _conflict_error(field: str, ours: str, theirs: str) -> str:
    return (
        f"field {field} is {ours} here and {theirs} in the bucket; "
        "write to another bucket, or delete that measurement's old points"
    )


def _unparsed(records: Sequence[Record], message: str) -> dict[int, str]:
    """Find the lines that the message quotes, and the reason that follows each."""
    positions = {record.body.decode(): position for position, record in enumerate(records)}
    found: dict[int, str] = {}
    start = message.find(_PARSE_ERROR)
    while start >= 0:
        start += len(_PARSE_ERROR)
        end = start
        for _ in range(_MOST_SEPARATORS):
            end = message.find("': ", end + 1)
            if end < 0:
                break
            position = positions.get(message[start:end])
            if position is not None:
                reason = message[end + 3 :].partition(f"\n{_PARSE_ERROR}")[0]
                found[position] = reason
                start = end
                break
        start = message.find(_PARSE_ERROR, start)
    return found


def _with_field(records: Sequence[Record], conflict: re.Match[str]) -> dict[int, str]:
    """Find the lines that hold the conflicting field with the refused type."""
    try:
        field, measurement = json.loads(conflict.group(1)), json.loads(conflict.group(2))
    except ValueError:  # Go quotes some characters in a way that JSON does not know
        return {}
    found = {}
    for position, record in enumerate(records):
        name, types = _read_line(record.body.decode())
        if name == measurement and types.get(field) == conflict.group(3):
            found[position] = ""
    return found


def _read_line(line: str) -> tuple[str, dict[str, str]]:
    """Return a line's measurement and the types of its fields."""
    measurement = _MEASUREMENT.match(line)
    head = _HEAD.match(line)
    if measurement is None or head is None:
        return "", {}
    types: dict[str, str] = {}
    at = head.end()
    while (match := _FIELD.match(line, at)) is not None:
        types[_ESCAPED.sub(r"\1", match.group(1))] = _type_name(match.group(2))
        at = match.end()
    return _ESCAPED.sub(r"\1", measurement.group()), types


def _type_name(value: str) -> str:
    if value.startswith('"'):
        return "string"
    if value in ("true", "false"):
        return "boolean"
    return "integer" if value.endswith("i") else "float"


def _older_than(records: Sequence[Record], bound: re.Match[str]) -> dict[int, str]:
    """Find the points that are older than the time that the server named."""
    moment = datetime.strptime(bound.group(1), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    nanoseconds = int((bound.group(2) or "").ljust(9, "0")[:9])
    bound_ns = int(moment.timestamp()) * 1_000_000_000 + nanoseconds
    return {
        position: "" for position, record in enumerate(records) if record.timestamp_ns < bound_ns
    }


def _dropped(message: str) -> int:
    """Return how many points a partial write dropped; 0 if the message does not say."""
    counts = _DROPPED.findall(message)
    # The last match is the server's own; a field name before it may hold anything.
    return int(counts[-1]) if counts else 0

"""What InfluxDB's answer to a write means for each line of it.

Belongs here: reading answers of 1.8, 2 and 3, and of what stands in front of them. Not here:
getting one (`influxdb.py`). Pure: no network, no clock.

When a server refuses some lines of a request, 2.x may have stored none of the others (400) or
all (422), 1.8 all of them, and a partial write names one cause and counts its lines although
others were dropped for a second one. So a line is delivered only by an answer that refuses
nothing: what is refused is rejected, and everything else is kept and sent again, as the same
points.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import NamedTuple

from otel_cbtop_exporter.sinks.base import Record, Rejection, WriteResult

__all__ = ["Answer", "classify", "readable"]

_PARSE_ERROR = "unable to parse '"
_CONFLICT = re.compile(
    r'input field ("(?:[^"\\]|\\.)*") on measurement ("(?:[^"\\]|\\.)*") '
    r"is type (\w+), already exists as type (\w+)"
)
_DROPPED = re.compile(r"dropped=(\d+)")
_LOWER_BOUND = re.compile(
    r"outside retention policy.* Lower Bound at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?Z",
    re.DOTALL,
)
_MESSAGE = re.compile(r'"(?:message|error)"\s*:\s*("(?:[^"\\]|\\.)*)')
_QUOTED = re.compile(r"'.*'|\"(?:[^\"\\]|\\.)*\"|<[^>]*>", re.DOTALL)

# A line: measurement up to an unescaped comma or space, fields after the first unescaped space.
_MEASUREMENT = re.compile(r"(?:[^\\ ,]|\\.)+", re.DOTALL)
_HEAD = re.compile(r"(?:[^\\ ]|\\.)+ ", re.DOTALL)
_FIELD = re.compile(r'((?:[^\\=,]|\\.)+)=("(?:[^"\\]|\\.)*"|[^, ]+),?', re.DOTALL)
_ESCAPED = re.compile(r"\\([ ,=])")

_LONGEST_ERROR = 300
# How far a reported line is looked for in front of its reason; a value may hold the separator.
_MOST_SEPARATORS = 100


class Answer(NamedTuple):
    """What a server answered.

    Attributes:
        status: Of HTTP.
        text: The body, at most 64 KiB, decoded with replacement, without secrets.
        content_type: The header, or "".
        retry_after_seconds: The server's wish, or None.
        location: Where a redirection leads: scheme and host, or "".
    """

    status: int
    text: str = ""
    content_type: str = ""
    retry_after_seconds: float | None = None
    location: str = ""


def classify(answer: Answer, records: Sequence[Record], *, bucket: str, org: str) -> WriteResult:
    """Say for each record what an answer means.

    Args:
        answer: To a request of exactly these records.
        records: Of one lane, at least one.
        bucket: Its name, for messages.
        org: The organization, for messages; "" if none is set.

    Returns:
        An answer for every record.
    """
    status = answer.status
    web_page = "html" in answer.content_type or answer.text.lstrip()[:1] == "<"
    if 200 <= status < 300 and not web_page:
        return WriteResult(delivered=records)
    message = _message(answer.text)
    if status in (400, 422) and not web_page and not _is_about_settings(message):
        return _refused(records, status, message)
    if status == 413:
        return WriteResult(
            kept=records,
            error="the request was too large (413); it is sent in smaller parts",
            error_type="413",
            split_reason="too_large",
            split_detail=answer.text,
        )
    why = _advice(answer, message, web_page=web_page, bucket=bucket, org=org)
    return WriteResult(
        kept=records,
        error=readable(f"InfluxDB answered {status}: {why}"),
        error_type=str(status),
        retry_after_seconds=answer.retry_after_seconds,
    )


def readable(text: str) -> str:
    """Make a text fit for a log line: printable, on one line, at most 300 characters."""
    text = " ".join(text.split())
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= _LONGEST_ERROR else f"{shown[: _LONGEST_ERROR - 3]}..."


def _advice(answer: Answer, message: str, *, web_page: bool, bucket: str, org: str) -> str:
    status = answer.status
    if 300 <= status < 400:
        where = answer.location or "another address"
        return f"it redirects to {where}; set influxdb.url to where InfluxDB itself answers"
    if status == 407:
        return "the proxy wants a login; give it in the proxy's url in the environment"
    if web_page:
        return (
            "a web page instead of InfluxDB's answer; check influxdb.url and the proxies on the way"
        )
    if status == 401:
        return "the token is not accepted; check influxdb.token or influxdb.token_file"
    if status == 403:
        return f"the token may not write to bucket {bucket!r}; give it that permission"
    if status == 404 and "organization" in message:
        return f"there is no organization {org!r}; check influxdb.org"
    if status == 404 and any(word in message for word in ("bucket", "database", "retention")):
        return f"there is no bucket {bucket!r} that the token can see; create it or check its name"
    if status == 404:
        return "there is no /api/v2/write at this influxdb.url"
    if status == 400 and "org" in message:
        return "this server wants an organization; set influxdb.org"
    return _QUOTED.sub("...", message) or "no reason given"


def _refused(records: Sequence[Record], status: int, message: str) -> WriteResult:
    """Find the lines that were refused, or have the batch halved."""
    conflict = _CONFLICT.search(message)
    bound = _LOWER_BOUND.search(message)
    named: dict[int, str] = {}
    reason, error, detail = "invalid", "InfluxDB cannot read some lines", message
    if _PARSE_ERROR in message:
        named = _unparsed(records, message)
    elif conflict is not None:
        reason = "field_type_conflict"
        error, detail = _conflict_sentence(conflict, message)
        named = _with_field(records, conflict)
    elif bound is not None or "beyond retention policy" in message:
        reason = "outside_retention"
        error = "points are older than the bucket keeps them"
        named = _older_than(records, bound) if bound is not None else {}
    elif "partial write" not in message:
        error = f"InfluxDB refused lines: {_QUOTED.sub('...', message)}"
    error = readable(f"{error} ({status})")
    # A parse error quotes lines, which may hold any number; it names every line anyway.
    dropped = 0 if _PARSE_ERROR in message else _dropped(message)
    if dropped == len(records) or len(records) == 1:
        named = {position: named.get(position, "") for position in range(len(records))}
    elif dropped and dropped != len(named):
        named = {}  # there may be other causes, or other shards with other types
    if not named:
        return WriteResult(
            kept=records,
            error=error,
            error_type=str(status),
            split_reason=reason,
            split_detail=detail,
        )
    return WriteResult(
        rejected=[
            Rejection(records[position], reason, own or detail) for position, own in named.items()
        ],
        kept=[record for position, record in enumerate(records) if position not in named],
        error=error,
        error_type=str(status),
    )


def _message(text: str) -> str:
    """Return the server's own words out of its JSON, which may have been cut."""
    match = _MESSAGE.search(text)
    if match is None:
        return text
    try:
        return str(json.loads(f'{match.group(1)}"'))
    except ValueError:
        return text


def _is_about_settings(message: str) -> bool:
    """Tell a 400 for what the request was sent with from one for its lines."""
    if any(words in message for words in (_PARSE_ERROR, "partial write", "conflict")):
        return False
    # The last one is what a server with TLS answers to plain HTTP.
    return any(words in message for words in ("orgID or org", "bucket", "HTTP request"))


def _unparsed(records: Sequence[Record], message: str) -> dict[int, str]:
    """Find the lines that the message quotes, with the reason behind each."""
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


def _conflict_sentence(conflict: re.Match[str], message: str) -> tuple[str, str]:
    field, measurement, ours, theirs = conflict.groups()
    error = (
        f"field {field} of measurement {measurement} is {ours} here and {theirs} in the bucket; "
        "write to another bucket, or delete that measurement's old points"
    )
    return error, f"{error} (docs/influxdb.md says how). InfluxDB: {message}"


def _with_field(records: Sequence[Record], conflict: re.Match[str]) -> dict[int, str]:
    """Find the lines that have the field of a conflict with the refused type."""
    try:
        field, measurement = json.loads(conflict.group(1)), json.loads(conflict.group(2))
    except ValueError:  # Go quotes some characters in a way that JSON has not
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
    """Find the points before the moment that the server named."""
    moment = datetime.strptime(bound.group(1), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    nanoseconds = int((bound.group(2) or "").ljust(9, "0")[:9])
    bound_ns = int(moment.timestamp()) * 1_000_000_000 + nanoseconds
    return {
        position: "" for position, record in enumerate(records) if record.timestamp_ns < bound_ns
    }


def _dropped(message: str) -> int:
    """Return how many points a partial write says that it dropped; 0 if it does not say."""
    counts = _DROPPED.findall(message)
    # The last one is the server's own; a field's name in front of it may hold anything.
    return int(counts[-1]) if counts else 0

"""What InfluxDB's answer to a write means for each of its lines.

Belongs here: reading the answers of 1.8, 2 and 3, and of proxies in front of them. Not here:
getting an answer (`influxdb_http.py`), finding the refused lines in it
(`influxdb_refusals.py`). Pure: no network, no clock.

When a server refuses some lines of a request, 2.x may have stored none of the others (400) or
all of them (422), and 1.8 all of them. A partial write names one cause and counts its lines,
even if other lines were dropped for a second cause. So a line counts as delivered only
when the answer refuses nothing: refused lines are rejected, and all others are kept and sent
again, as the same points.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from otel_cbtop_exporter.sinks.base import Record, Rejection, WriteResult
from otel_cbtop_exporter.sinks.influxdb_refusals import read_refusal

__all__ = ["Answer", "classify", "readable"]

_MESSAGE = re.compile(r'"(?:message|error)"\s*:\s*("(?:[^"\\]|\\.)*)')
_QUOTED = re.compile(r"'.*'|\"(?:[^\"\\]|\\.)*\"|<[^>]*>", re.DOTALL)

# A 500 that is not about the data: the server lacks memory or disk space, or is shutting down.
_SHORT_OF_SOMETHING = re.compile(
    r"cache-max-memory-size exceeded|no space left on device|engine is closed|shard is disabled"
    r"|\btimeout\Z"
)

_LONGEST_ERROR = 300


class Answer(NamedTuple):
    """What a server answered.

    Attributes:
        status: The HTTP status.
        text: The body, at most 64 KiB, decoded with replacement, without secrets.
        content_type: The header, or "".
        retry_after_seconds: How long the server asks to wait, or None.
        location: Scheme and host that a redirection leads to, or "".
    """

    status: int
    text: str = ""
    content_type: str = ""
    retry_after_seconds: float | None = None
    location: str = ""


def classify(
    answer: Answer,
    records: Sequence[Record],
    *,
    bucket: str,
    org: str,
    login_from: str = "influxdb.token or influxdb.token_file",
) -> WriteResult:
    """Say for each record what an answer means.

    Args:
        answer: The answer to a request with exactly these records.
        records: At least one, all of one lane.
        bucket: The bucket's name, for messages.
        org: The organization, for messages; "" if none is set.
        login_from: Where the token of the request came from, for messages; "" if it had none.

    Returns:
        An outcome for every record.
    """
    status = answer.status
    web_page = "html" in answer.content_type or answer.text.lstrip()[:1] == "<"
    if 200 <= status < 300 and not web_page:
        return WriteResult(delivered=records)
    message = _message(answer.text)
    if status in (400, 422) and not web_page and not _is_about_settings(message):
        return _refused(records, answer, message)
    if status == 413:
        return WriteResult(
            kept=records,
            error="the request was too large (413); it is sent in smaller parts",
            error_type="413",
            split_reason="too_large",
            split_detail=answer.text,
        )
    why = _advice(answer, message, web_page=web_page, bucket=bucket, org=org, login_from=login_from)
    is_short = status == 500 and _SHORT_OF_SOMETHING.search(_QUOTED.sub("...", message))
    return WriteResult(
        kept=records,
        error=readable(f"InfluxDB answered {status}: {why}"),
        error_type="unavailable" if is_short else str(status),
        retry_after_seconds=answer.retry_after_seconds,
    )


def readable(text: str) -> str:
    """Make a text fit for a log line: printable, on one line, at most 300 characters."""
    text = " ".join(text.split())
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= _LONGEST_ERROR else f"{shown[: _LONGEST_ERROR - 3]}..."


def _advice(
    answer: Answer, message: str, *, web_page: bool, bucket: str, org: str, login_from: str
) -> str:
    status = answer.status
    if 300 <= status < 400:
        where = answer.location or "another address"
        return f"it redirects to {where}; set influxdb.url to where InfluxDB itself answers"
    if status == 407:
        return "the proxy wants a login; give it in the proxy's url in the environment"
    if web_page and status in (502, 503, 504):
        return "this is a proxy's web page; the proxy cannot reach InfluxDB"
    if web_page:
        return (
            "a web page instead of InfluxDB's answer; check influxdb.url and the proxies on the way"
        )
    if status == 401 and not login_from:
        return "no token is set; set influxdb.token or influxdb.token_file"
    if status == 401:
        return f"the token is not accepted; check {login_from}"
    if status == 403 and "inactive" in message:
        return "the token is deactivated; activate it, or give another one"
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


def _refused(records: Sequence[Record], answer: Answer, message: str) -> WriteResult:
    """Reject the refused lines, or have the batch halved if the answer does not name them."""
    refusal = read_refusal(answer.text, message, records)
    words = refusal.error or f"InfluxDB refused lines: {_QUOTED.sub('...', message)}"
    error, status = readable(f"{words} ({answer.status})"), str(answer.status)
    named = refusal.named
    if not named:
        return WriteResult(
            kept=records,
            error=error,
            error_type=status,
            split_reason=refusal.reason,
            split_detail=refusal.detail,
        )
    return WriteResult(
        rejected=[
            Rejection(records[position], refusal.reason, own or refusal.detail)
            for position, own in named.items()
        ],
        kept=[record for position, record in enumerate(records) if position not in named],
        error=error,
        error_type=status,
    )


def _message(text: str) -> str:
    """Return the server's message from its JSON, which may have been cut off."""
    match = _MESSAGE.search(text)
    if match is None:
        return text
    try:
        return str(json.loads(f'{match.group(1)}"'))
    except ValueError:
        return text


def _is_about_settings(message: str) -> bool:
    """Whether a 400 is about the request's settings and not about its lines."""
    if any(words in message for words in ("unable to parse", "partial write", "conflict")):
        return False
    # A server with TLS answers the last one to plain HTTP.
    return any(words in message for words in ("orgID or org", "bucket", "HTTP request"))

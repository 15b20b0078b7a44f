"""The head of a line of line protocol: the measurement and its tags, cut to what fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from otel_cbtop_exporter.encoding.line_protocol_text import (
    TRACE_ID_TAG,
    cut_text,
    key_text,
    measurement_text,
    tag_name,
)
from otel_cbtop_exporter.events import SCHEMA_VERSION

__all__ = ["MAX_HEAD_BYTES", "Head", "render_head"]

# The server's own limit for measurement, tags and one field key together is 65,535 bytes.
MAX_HEAD_BYTES = 60_000


class Head(NamedTuple):
    """Measurement and tags as text; `values_cut` is None for a head of usual size."""

    text: str
    values_cut: int | None


def render_head(measurement: str, tags: Mapping[str, str], trace_id: str | None) -> Head:
    """Return the head; oversized tag values are cut at a character, and counted."""
    head = _joined_head(measurement, tags, trace_id)
    # A character takes four bytes at the most.
    if len(head) <= MAX_HEAD_BYTES // 4 or len(head.encode()) <= MAX_HEAD_BYTES:
        return Head(head, None)
    max_bytes = MAX_HEAD_BYTES
    cut = dict(tags)
    while len(head.encode()) > MAX_HEAD_BYTES and max_bytes > 16:
        max_bytes //= 2
        cut = {key: cut_text(value, max_bytes) for key, value in tags.items()}
        head = _joined_head(measurement, cut, trace_id)
    return Head(head, sum(cut[key] != tags[key] for key in tags))


def _joined_head(measurement: str, tags: Mapping[str, str], trace_id: str | None) -> str:
    named = {"schema_version": str(SCHEMA_VERSION)}
    if trace_id:
        named[TRACE_ID_TAG] = trace_id
    for key, value in tags.items():
        if value:
            name = tag_name(key)
            while name in named:  # two keys that differ in nothing but control characters
                name += "_"
            named[name] = value
    pairs = [f"{key_text(name)}={key_text(value)}" for name, value in sorted(named.items())]
    return f"{measurement_text(measurement)},{','.join(pairs)}"

"""The head of a line of line protocol: the measurement and its tags, cut to what fits."""

from __future__ import annotations

import functools
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
from otel_cbtop_exporter.tag_set import TagSet

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
    if type(tags) is TagSet:
        keys, texts = tags.tag_keys, tags.texts
    else:
        shown = {key: value for key, value in tags.items() if value}
        keys, texts = tuple(shown), list(shown.values())
    if trace_id:
        texts = [*texts, trace_id]
    template, order = _template(keys, has_trace=bool(trace_id))
    return measurement_text(measurement) + template % tuple([key_text(texts[at]) for at in order])


@functools.lru_cache(maxsize=1_024)
def _template(keys: tuple[str, ...], *, has_trace: bool) -> tuple[str, list[int]]:
    """Return what is the same for tags with these keys, and the order of their names.

    The positions are of the tags' texts, with the trace id behind them.
    """
    positions = {"schema_version": -1}
    if has_trace:
        positions[TRACE_ID_TAG] = len(keys)
    for position, key in enumerate(keys):
        name = tag_name(key)
        while name in positions:  # two keys that differ in nothing but control characters
            name += "_"
        positions[name] = position
    template, order = "", []
    for name, position in sorted(positions.items()):
        text = key_text(name).replace("%", "%%")
        if position < 0:
            template += f",{text}={SCHEMA_VERSION}"
        else:
            template += f",{text}=%s"
            order.append(position)
    return template, order

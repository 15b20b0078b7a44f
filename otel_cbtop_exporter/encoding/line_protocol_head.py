"""The head of a line: the measurement and the tags, cut to a size that InfluxDB takes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from otel_cbtop_exporter.encoding.line_protocol_text import (
    TRACE_ID_TAG,
    cut_text,
    escaped,
    measurement_text,
    tag_name,
)
from otel_cbtop_exporter.event_table import EventTable
from otel_cbtop_exporter.events import SCHEMA_VERSION
from otel_cbtop_exporter.tag_set import TagSet

__all__ = ["MAX_HEAD_BYTES", "Head", "heads_of", "point_slot", "render_head", "slot_of"]

# The server limits measurement, tags and one field key to 65,535 bytes together.
MAX_HEAD_BYTES = 60_000


class Head(NamedTuple):
    """Measurement and tags as text, and how many tag values were cut; None if the size is usual."""

    text: str
    values_cut: int | None


def render_head(measurement: str, tags: TagSet, prefix: str) -> Head:
    """Return the head; if it is too long, cut the longest tag values between two characters.

    Args:
        measurement: Any text.
        tags: The tags of the event.
        prefix: The value of the tag `trace_id_prefix`; "" for no tag.
    """
    head = _joined_head(measurement, tags.tag_keys, tags.texts, prefix)
    # A character takes at most four bytes.
    if len(head) <= MAX_HEAD_BYTES // 4 or len(head.encode()) <= MAX_HEAD_BYTES:
        return Head(head, None)
    max_bytes = MAX_HEAD_BYTES
    texts = tags.texts
    while len(head.encode()) > MAX_HEAD_BYTES and max_bytes > 16:
        max_bytes //= 2
        texts = [cut_text(text, max_bytes) for text in tags.texts]
        head = _joined_head(measurement, tags.tag_keys, texts, prefix)
    return Head(head, sum(map(operator.ne, texts, tags.texts)))


def _joined_head(measurement: str, keys: tuple[str, ...], texts: Sequence[str], prefix: str) -> str:
    if prefix:
        texts = [*texts, prefix]
    template, order = _template(keys, has_prefix=bool(prefix))
    return measurement_text(measurement) + template % tuple([escaped(texts[at]) for at in order])


@functools.lru_cache(maxsize=1_024)
def _template(keys: tuple[str, ...], *, has_prefix: bool) -> tuple[str, list[int]]:
    """Return a `%` template of the tags with these keys, and the order of the texts that fill it.

    The order is given as positions in the tags' texts, followed by the prefix.
    """
    positions = {"schema_version": -1}
    if has_prefix:
        positions[TRACE_ID_TAG] = len(keys)
    for position, key in enumerate(keys):
        name = tag_name(key)
        while name in positions:  # two keys that differ only in control characters
            name += "_"
        positions[name] = position
    template, order = "", []
    for name, position in sorted(positions.items()):
        text = escaped(name).replace("%", "%%")
        if position < 0:
            template += f",{text}={SCHEMA_VERSION}"
        else:
            template += f",{text}=%s"
            order.append(position)
    return template, order


def heads_of(table: EventTable, slots: Iterable[Any], prefixes: Iterable[str]) -> list[Any] | None:
    """Return the head of each line, as bytes for data points; None if one is of unusual size.

    Args:
        table: The table to render.
        slots: For each line, the key under which its tag set caches its head.
        prefixes: For each line, the prefix as in `render_head`.
    """
    found: list[Any] = list(map(dict.get, [tags.rendered for tags in table.tag_sets], slots))
    if None not in found:
        return found
    columns = zip(table.tag_sets, slots, prefixes, strict=False)
    for position, (tags, slot, prefix) in enumerate(columns):
        head = tags.rendered.get(slot)  # an earlier line may have made it
        if head is None:
            head, values_cut = render_head(table.measurement, tags, prefix)
            if values_cut is not None:
                return None
            if table.metric is not None:
                head = head.encode()
            tags.rendered[slot] = head
        found[position] = head
    return found


def slot_of(measurement: str) -> str:
    """Return the key under which a tag set caches its head."""
    return f"line {measurement}"


def point_slot(measurement: str) -> str:
    """Return the key under which a tag set, or a column of them, caches heads as bytes."""
    return f"points {measurement}"

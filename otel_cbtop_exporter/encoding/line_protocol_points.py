"""Renders the lines of data points, a whole table at a time and never number by number.

The fast way is to let msgspec write all numbers, as objects whose keys are the text that line
protocol has between two values, and then to delete the JSON syntax around them. The line of a
histogram of 15 bounds takes 1.1 us this way, and 1.8 us if it is joined from 21 texts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import msgspec

from otel_cbtop_exporter.encoding.line_protocol_fields import INTEGER, number_text, plan_fields
from otel_cbtop_exporter.event_table import EventTable
from otel_cbtop_exporter.tag_set import object_type

__all__ = ["render_points"]

_encoder = msgspec.json.Encoder()

# JSON's syntax around keys and values is deleted, including commas. So the comma between two
# fields, and the field `metric`, are written as characters that no key and no number contains.
_NOT_IN_LINES = b'{}":,'
_COMMA, _METRIC = b";", b"|"
_TO_LINES = bytes.maketrans(_COMMA, b",")


class _Layout(NamedTuple):
    """How the fields of points that have the same keys become a line.

    Attributes:
        order: The positions of their columns, in the order of the line.
        numbers: The positions of the columns that are floats on the server.
        fields_type: Makes the object to encode; called with the values in that order.
        end: The text after the last value.
    """

    order: list[int]
    numbers: list[int]
    fields_type: Callable[..., Any]
    end: bytes


def render_points(table: EventTable, heads: Sequence[bytes], metric: str) -> bytes:
    """Return the lines of a table, each of which ends in a newline.

    Args:
        table: A table whose times are all the same, and within InfluxDB's range.
        heads: The measurement and the tags of each line.
        metric: The text of the field `metric`.
    """
    layout = _layout(table.keys)
    columns: list[Sequence[Any]] = list(table.columns)
    size = len(table)
    texts = _number_texts([number for at in layout.numbers for number in columns[at]])
    if texts:
        for start, at in enumerate(layout.numbers):
            columns[at] = texts[start * size : (start + 1) * size]
    made = list(map(layout.fields_type, *[columns[at] for at in layout.order]))
    metric_field = f"metric={metric}".encode()
    fields = _encoder.encode_lines(made).translate(_TO_LINES, _NOT_IN_LINES)
    fields = fields.replace(_METRIC, metric_field)
    end = layout.end.replace(_COMMA, b",").replace(_METRIC, metric_field)
    before: Iterable[bytes] = repeat(b" ")
    if table.trace_ids:
        # `correlation_id` sorts before all other fields that a point can have.
        before = [
            f' correlation_id="{trace_id}",'.encode() if trace_id else b" "
            for trace_id in table.trace_ids
        ]
    ends = repeat(b"%b %d\n" % (end, table.times_ns[0]))
    lines = zip(heads, before, fields.split(b"\n"), ends, strict=False)
    return b"".join(chain.from_iterable(lines))


@functools.lru_cache(maxsize=1_024)
def _layout(keys: tuple[str, ...]) -> _Layout:
    order: list[int] = []
    numbers: list[int] = []
    between: list[str] = []
    text = comma = ""
    for name, role, key, prefix in plan_fields(keys, hand_made=False):
        if key is not None:
            between.append(f"{text}{comma}{prefix}")
            at = keys.index(key)
            order.append(at)
            text = "i" if role == INTEGER else ""
            if role != INTEGER:
                numbers.append(at)
        elif name == "metric":
            text += f"{comma}{_METRIC.decode()}"
        else:
            continue
        comma = _COMMA.decode()
    return _Layout(order, numbers, object_type(tuple(between)), text.encode())


def _number_texts(numbers: Sequence[float]) -> list[str] | None:
    """Return the texts of numbers as `number_text` writes them; None if msgspec writes the same."""
    encoded = _encoder.encode(numbers)
    differs = b"e" in encoded or b"0.0000" in encoded
    if not differs and b".0," not in encoded and not encoded.endswith(b".0]"):
        return None
    texts = f"{encoded.decode()[1:-1]},".replace(".0,", ",").split(",")
    texts.pop()
    if differs:
        texts = [
            number_text(float(text)) if "e" in text or "0.0000" in text else text for text in texts
        ]
    return texts

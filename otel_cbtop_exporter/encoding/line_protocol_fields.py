"""The fields of a line: their order, their names, and the text of each value.

Belongs here: the slow and obvious path, which renders whatever an event holds. Not here: the fast
path for the tables that mapping makes (`line_protocol_columns.py`), which gives the same text.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from otel_cbtop_exporter.encoding.line_protocol_limits import MAX_STRING_BYTES, may_be_too_long
from otel_cbtop_exporter.encoding.line_protocol_text import (
    INTEGER_FIELDS,
    cut_text,
    escaped,
    field_name,
    string_text,
    tag_name,
)
from otel_cbtop_exporter.event_table import ID_FIELDS, INT64_MAX, INT64_MIN, TEXT_FIELDS
from otel_cbtop_exporter.events import Event

__all__ = [
    "ADDED",
    "ID",
    "INTEGER",
    "NUMBER",
    "TEXT",
    "Fields",
    "Plan",
    "Planned",
    "number_text",
    "plan_fields",
    "render_fields",
]

# The roles of fields, which say how a value is written. ADDED has the fields that the encoder adds.
INTEGER, NUMBER, TEXT, ID = range(4)
ADDED = {
    "attributes": TEXT,
    "correlation_id": TEXT,
    "metric": TEXT,
    "original_timestamp_ns": INTEGER,
}


class Planned(NamedTuple):
    """One field of a plan.

    Attributes:
        name: Its name as it is stored.
        role: INTEGER, NUMBER, TEXT or ID; only a NUMBER may also hold values of another type.
        key: Its key in the event's fields, or None if the encoder adds it.
        prefix: Its escaped name and the equals sign.
    """

    name: str
    role: int
    key: str | None
    prefix: str


Plan = tuple[Planned, ...]
"""The fields of events that have the same field names, sorted by name."""


class Fields(NamedTuple):
    """Rendered fields.

    Attributes:
        text: The fields as text; "" if none of the event's own fields can be carried.
        left_out: How many of the event's own fields cannot be carried.
        cut: How many texts were cut.
    """

    text: str
    left_out: int
    cut: int = 0


@functools.lru_cache(maxsize=1_024)
def plan_fields(keys: tuple[str, ...], *, hand_made: bool, tag_keys: tuple[str, ...] = ()) -> Plan:
    """Name and sort the fields of an event, together with those that the encoder adds.

    Args:
        keys: The keys of the fields.
        hand_made: Whether the event is made by hand, so that all numbers are floats.
        tag_keys: The keys of the event's tags. A field and a tag of the same name could not be
            queried; for events from mapping, `line_protocol_text` keeps the names distinct.
    """
    planned = [Planned(name, role, None, f"{name}=") for name, role in ADDED.items()]
    names = {*ADDED, *map(tag_name, tag_keys)}
    for key in keys:
        name = field_name(str(key))
        while name in names:
            name += "_"
        names.add(name)
        role = NUMBER if hand_made else _role(name)
        planned.append(Planned(name, role, key, f"{escaped(name)}="))
    return tuple(sorted(planned, key=lambda field: field.name))


def render_fields(event: Event, plan: Plan, added: tuple[str, str, str, str]) -> Fields:
    """Render the fields of an event, whatever they hold.

    Args:
        event: Any event.
        plan: The plan of its fields.
        added: The texts of the fields in `ADDED`, in that order; "" leaves a field out.
    """
    texts = dict(zip(ADDED, added, strict=True))
    parts: list[str] = []
    left_out = cut = 0
    for name, role, key, prefix in plan:
        value = None if key is None else event.fields[key]
        if isinstance(value, str) and may_be_too_long([value]):
            value = str.__str__(value).replace("\x00", "\ufffd")  # as it is written: three bytes
            short = cut_text(value, MAX_STRING_BYTES)
            cut += short != value
            value = short
        text = texts[name] if key is None else _value_text(value, role)
        if text:
            parts.append(prefix + text)
        elif key is not None:
            left_out += 1
    return Fields(",".join(parts) if left_out < len(event.fields) else "", left_out, cut)


def _role(name: str) -> int:
    if name in INTEGER_FIELDS or name.startswith(("le_", "in_")):
        return INTEGER
    if name in ID_FIELDS:
        return ID
    return TEXT if name in TEXT_FIELDS else NUMBER


def _value_text(value: Any, role: int) -> str:
    """Render one value; "" if it cannot be carried."""
    if isinstance(value, str):
        return string_text(str.__str__(value))
    if not isinstance(value, int | float):
        return ""
    if role == INTEGER:
        whole = math.isfinite(value) and int(value) == value
        return f"{int(value)}i" if whole and INT64_MIN <= value <= INT64_MAX else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        return number_text(value) if math.isfinite(value) else ""
    except OverflowError:
        return ""


def number_text(number: float) -> str:
    """Render a finite number as a float.

    Raises:
        OverflowError: There is no float of that size.
    """
    # repr() reads back bit for bit. InfluxDB does not need a `.0`, and cbtop does not write it.
    return repr(float(number)).removesuffix(".0")

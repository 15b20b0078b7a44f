"""A table of events that have the same fields, so that no object is made for each of them.

Belongs here: what a table is and promises. Not here: filling tables (`mapping/`), batches of
tables (`event_batch.py`), rendering them (`encoding/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import msgspec

from otel_cbtop_exporter.events import SCHEMA_VERSION, Event, MetricInfo, Signal
from otel_cbtop_exporter.tag_set import TagColumn

__all__ = [
    "ID_FIELDS",
    "INT64_MAX",
    "INT64_MIN",
    "MAX_NUMBER",
    "MIN_NUMBER",
    "TEXT_FIELDS",
    "EventTable",
]

# Their values are hex digits, which no encoding has to escape.
ID_FIELDS = frozenset({"linked_span_id", "linked_trace_id", "parent_span_id", "span_id"})
TEXT_FIELDS = frozenset({"body", "linked_trace_state", "status_message", "trace_state"})

# A float holds every integer from one to the other exactly, and `repr` writes no exponent for it.
MIN_NUMBER, MAX_NUMBER = -(2**53), 2**53

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


# gc=False: as with `Event`, tracked objects would make the garbage collector run in the
# application's time.
class EventTable(msgspec.Struct, frozen=True, gc=False):
    """Events of one measurement and signal that have the same fields, column by column.

    Whoever fills a table makes these promises, so that encoders need not check:

    - Values have the types that the schema gives their fields: `int`, `float` and `str` themselves,
      not subclasses.
    - Integers fit in 64 bits, numbers are finite, and ids are lower-case hex digits.
    - In a field that may hold floats and integers, integers are between `MIN_NUMBER` and
      `MAX_NUMBER`.
    - Times are `int`.
    - In a table of metric points all values are numbers, keys consist of letters, digits and
      `_.+-`, and there are no attributes.

    Texts and attributes may hold anything. An event that breaks a promise stays a loose `Event`.

    Attributes:
        measurement: The measurement of all events.
        signal: The signal of all events.
        keys: The names of their fields, in order.
        columns: The values of each field.
        tag_sets: The tag set of each event.
        times_ns: The time of each event.
        trace_ids: The trace id of each event, or None; None if no event has one.
        attributes: The attributes of each event, or None; None if no event has any.
        metric: The metric of all events, if they are metric points.
    """

    measurement: str
    signal: Signal
    keys: tuple[str, ...]
    columns: Sequence[Sequence[Any]]
    tag_sets: TagColumn
    times_ns: list[int]
    trace_ids: Sequence[str | None] | None = None
    attributes: Sequence[Mapping[str, Any] | None] | None = None
    metric: MetricInfo | None = None

    def __len__(self) -> int:
        return len(self.times_ns)

    def __iter__(self) -> Iterator[Event]:
        values = zip(*self.columns, strict=True)
        return map(
            Event,
            repeat(self.measurement),
            self.tag_sets,
            [dict(zip(self.keys, row, strict=True)) for row in values],
            self.times_ns,
            repeat(SCHEMA_VERSION),
            self.trace_ids or repeat(None),
            repeat(self.signal),
            self.attributes or repeat(None),
            repeat(self.metric),
        )

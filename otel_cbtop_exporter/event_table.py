"""Events that have the same fields as a table, so that nothing is made for each on its way out.

Belongs here: what a table is and promises. Not here: who fills tables (`mapping/`), a
batch of several (`event_batch.py`), who renders them (`encoding/`).
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

# Hex digits, which need no escape in any encoding.
ID_FIELDS = frozenset({"linked_span_id", "linked_trace_id", "parent_span_id", "span_id"})
TEXT_FIELDS = frozenset({"body", "linked_trace_state", "status_message", "trace_state"})

# A float holds every integer between them, and `repr` writes it without an exponent.
MIN_NUMBER, MAX_NUMBER = -(2**53), 2**53

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


# gc=False: as with `Event`, tracked objects would make the garbage collector run in the
# application's time.
class EventTable(msgspec.Struct, frozen=True, gc=False):
    """Events of one measurement and signal that have the same fields, column by column.

    Whoever fills a table promises that encoders need not look: values have the types that their
    fields have by the schema (`int`, `float` and `str` themselves, no subclasses), integers fit in
    64 bits, numbers are finite, ids are lower-case hex digits. Where a number may be a float or an
    integer, an integer is between `MIN_NUMBER` and `MAX_NUMBER`. Times are `int`. Texts and
    attributes may hold anything. Of a metric every value is a number, the keys are letters, digits
    and `_.+-`, and there are no attributes. What does not keep this is an `Event` of its own.

    Attributes:
        measurement: Of all events.
        signal: Of all events.
        keys: The names of their fields, in order.
        columns: The values of each field.
        tag_sets: Of each event.
        times_ns: Of each event.
        trace_ids: Of each event; None if no event has one.
        attributes: Of each event; None if no event has any.
        metric: Of all events.
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

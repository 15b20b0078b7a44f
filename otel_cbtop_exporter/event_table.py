"""Events that have the same fields as tables, so that nothing is made for each on its way out.

Belongs here: what a table is, and what it promises. Not here: who fills tables (`mapping/`), a
batch of several (`event_batch.py`), who renders them (`encoding/`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Any

import msgspec

from otel_cbtop_exporter.events import SCHEMA_VERSION, Event, MetricInfo, Signal
from otel_cbtop_exporter.tag_set import TagColumn, TagSet, object_type

__all__ = [
    "ID_FIELDS",
    "INT64_MAX",
    "INT64_MIN",
    "MAX_NUMBER",
    "MIN_NUMBER",
    "TEXT_FIELDS",
    "ColumnTable",
    "EventTable",
    "Row",
]

# Hex digits, which need no escape in any encoding.
ID_FIELDS = frozenset({"linked_span_id", "linked_trace_id", "parent_span_id", "span_id"})
TEXT_FIELDS = frozenset({"body", "linked_trace_state", "status_message", "trace_state"})

# A float holds every integer between them, and `repr` writes it without an exponent.
MIN_NUMBER, MAX_NUMBER = -(2**53), 2**53

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


# gc=False here and below: as with `Event`, thousands of tracked objects would make the garbage
# collector run in the application's time.
class Row(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An event of a table as it is encoded: an `Event`, but for two of its parts.

    Attributes:
        tags: The JSON of its tag set.
        fields: The values, in the order of the table's keys, as an instance of its
            `fields_type`, which takes half of what a dict does.
    """

    measurement: str
    tags: msgspec.Raw
    fields: Any
    timestamp_ns: int
    schema_version: int
    correlation_id: str | None = None
    signal: Signal | None = None
    attributes: Mapping[str, Any] | None = None


class EventTable(msgspec.Struct, frozen=True, gc=False):
    """Events of one measurement and signal that have the same fields, row by row.

    Whoever fills a table promises that encoders need not look: values have the types that their
    fields have by the schema (`int`, `float` and `str` themselves, no subclasses), integers fit in
    64 bits, numbers are finite, ids are lower-case hex digits. Where a number may be a float or an
    integer, an integer is between `MIN_NUMBER` and `MAX_NUMBER`. Times are `int`. Texts and
    attributes may hold anything. What does not keep this is an `Event` of its own.

    Attributes:
        measurement: Of all events.
        signal: Of all events.
        keys: The names of their fields, in order.
        rows: In order.
        tag_sets: Of each row.
    """

    measurement: str
    signal: Signal
    keys: tuple[str, ...]
    rows: list[Row]
    tag_sets: list[TagSet]

    @property
    def fields_type(self) -> Callable[..., Any]:
        """Called with the values of an event's fields, makes the `fields` of its row."""
        return object_type(self.keys)

    def add(self, row: Row, tags: TagSet) -> None:
        """Add a row, which has the JSON of these tags."""
        self.rows.append(row)
        self.tag_sets.append(tags)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Event]:
        return map(self.event, self.rows, self.tag_sets)

    @property
    def times_ns(self) -> list[int]:
        """The time of each event."""
        return [row.timestamp_ns for row in self.rows]

    @property
    def columns(self) -> list[list[Any]]:
        """The values of each field."""
        fields = [row.fields for row in self.rows]
        return [list(map(attrgetter(f"v{at}"), fields)) for at in range(len(self.keys))]

    @property
    def trace_ids(self) -> list[str | None]:
        """The correlation id of each event."""
        return [row.correlation_id for row in self.rows]

    @property
    def attributes(self) -> list[Mapping[str, Any] | None]:
        """Of each event."""
        return [row.attributes for row in self.rows]

    def event(self, row: Row, tags: TagSet) -> Event:
        """Return a row as an event."""
        return Event(
            row.measurement,
            tags,
            dict(zip(self.keys, msgspec.structs.astuple(row.fields), strict=True)),
            row.timestamp_ns,
            row.schema_version,
            row.correlation_id,
            row.signal,
            row.attributes,
        )


class ColumnTable(msgspec.Struct, frozen=True, gc=False):
    """Events of one measurement and signal that have the same fields, column by column.

    Its promise is that of `EventTable`. A metric's has more: every value is a number, the keys are
    letters, digits and `_.+-`, and there are no attributes.

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

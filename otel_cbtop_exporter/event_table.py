"""Events that have the same fields as tables, so that nothing is made for each on its way out.

Belongs here: what a table is, and what it promises. Not here: who fills tables (`mapping/`), a
batch of several (`event_batch.py`), who renders them (`encoding/`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

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
    "EventTable",
    "PointTable",
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
    """Events of one measurement and signal that have the same fields.

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


class PointTable(msgspec.Struct, frozen=True, gc=False):
    """Data points of one metric that have the same fields, column by column.

    Its promise is that of `EventTable`, and more: every value is a number, the keys are letters,
    digits and `_.+-`, and there are no attributes.

    Attributes:
        measurement: Of all points.
        metric: Of all points.
        keys: The names of their fields, in order.
        columns: The values of each field.
        tag_sets: Of each point.
        times_ns: Of each point.
        trace_ids: Of each point, from its exemplars; None if no point has one.
    """

    measurement: str
    metric: MetricInfo
    keys: tuple[str, ...]
    columns: Sequence[Sequence[float]]
    tag_sets: TagColumn
    times_ns: list[int]
    trace_ids: Sequence[str | None] | None

    @property
    def signal(self) -> Literal["metric"]:
        """Of all points."""
        return "metric"

    def __len__(self) -> int:
        return len(self.times_ns)

    def __iter__(self) -> Iterator[Event]:
        rows = zip(*self.columns, strict=True)
        trace_ids = self.trace_ids or [None] * len(self)
        for row, tags, time_ns, trace_id in zip(
            rows, self.tag_sets, self.times_ns, trace_ids, strict=True
        ):
            yield Event(
                self.measurement,
                tags,
                dict(zip(self.keys, row, strict=True)),
                time_ns,
                SCHEMA_VERSION,
                trace_id,
                "metric",
                None,
                self.metric,
            )

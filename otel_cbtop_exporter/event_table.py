"""Batches of events as tables, so that nothing is made for each event on its way to its bytes.

Belongs here: the table, and the batch that reads like a sequence of events. Not here: who fills
tables (`mapping/`), who renders them (`encoding/`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

import msgspec

from otel_cbtop_exporter.events import Event, MetricInfo, Signal
from otel_cbtop_exporter.on_demand import OnDemand
from otel_cbtop_exporter.tag_set import TagSet, object_type

__all__ = [
    "ID_FIELDS",
    "INT64_MAX",
    "INT64_MIN",
    "MAX_NUMBER",
    "MIN_NUMBER",
    "TEXT_FIELDS",
    "EventRun",
    "EventTable",
    "Events",
    "Row",
    "Tables",
]

# A table costs more than so many events by themselves: kinds that take turns make no tables.
_FEW = 8

# Hex digits, which need no escape in any encoding.
ID_FIELDS = frozenset({"linked_span_id", "linked_trace_id", "parent_span_id", "span_id"})
TEXT_FIELDS = frozenset({"body", "linked_trace_state", "status_message", "trace_state"})
_TEXTS = ID_FIELDS | TEXT_FIELDS

# The fields of signals that are a float or an integer, as it comes; all others are integers.
_NUMBERS = frozenset({"max", "min", "sum", "value"})

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
    metric: MetricInfo | None = None


class EventTable(msgspec.Struct, frozen=True, gc=False):
    """Events of one measurement and signal that have the same fields.

    Whoever fills a table promises that encoders need not look: values have the types that their
    fields have by the schema (`int`, `float` and `str` themselves, no subclasses), integers fit
    in 64 bits, numbers are finite and between `MIN_NUMBER` and `MAX_NUMBER`, ids are lower-case
    hex digits, a metric's values are all numbers, and it has no attributes. Times are `int`. Texts
    and attributes may hold anything. What does not keep this is an `Event` of its own.

    Attributes:
        measurement: Of all events.
        signal: Of all events.
        keys: The names of their fields, in order.
        metric: Of all events.
        rows: In order.
        tag_sets: Of each row.
    """

    measurement: str
    signal: Signal
    keys: tuple[str, ...]
    metric: MetricInfo | None
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
            row.metric,
        )


class EventRun(msgspec.Struct, frozen=True, gc=False):
    """Loose events of one signal, which may hold anything.

    Attributes:
        signal: None for events that were made by hand.
        events: In order.
    """

    signal: Signal | None
    events: list[Event]

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    @property
    def times_ns(self) -> list[int]:
        """The time of each event."""
        return [event.timestamp_ns for event in self.events]


_Part = TypeVar("_Part", EventTable, EventRun)


class Tables:
    """Collects events into tables.

    Args:
        in_order: Whether the events stay in the order in which they came, as log records do,
            and a table ends where another begins; otherwise there is one for each kind.
    """

    __slots__ = ("_in_order", "_open", "_parts")

    def __init__(self, *, in_order: bool = False) -> None:
        self._in_order = in_order
        self._parts: list[EventTable | EventRun] = []
        self._open: dict[Any, EventTable | EventRun] = {}

    def table(
        self,
        measurement: str,
        signal: Signal,
        keys: tuple[str, ...],
        metric: MetricInfo | None = None,
    ) -> EventTable:
        """Return a table whose rows are to be appended to."""
        name = (measurement, signal, keys, id(metric))  # the table keeps it alive
        part = self._open.get(name)
        if not isinstance(part, EventTable):
            part = self._begin(name, EventTable(measurement, signal, keys, metric, [], []))
        return part

    def add(self, event: Event) -> None:
        """Take an event into a table, if it keeps what tables promise."""
        fields = event.fields
        if (
            event.signal is None
            or not isinstance(event.tags, TagSet)
            or type(event.timestamp_ns) is not int
            or not all(map(_is_plain, fields, fields.values()))
        ):
            self.add_loose(event)
            return
        table = self.table(event.measurement, event.signal, tuple(fields), event.metric)
        row = Row(
            event.measurement,
            event.tags.json,
            table.fields_type(*fields.values()),
            event.timestamp_ns,
            event.schema_version,
            event.correlation_id,
            event.signal,
            event.attributes,
            event.metric,
        )
        table.add(row, event.tags)

    def add_loose(self, event: Event) -> None:
        """Take an event whose like will not come again, for which a table is not worth it."""
        part = self._open.get(event.signal)
        if not isinstance(part, EventRun):
            part = self._begin(event.signal, EventRun(event.signal, []))
        part.events.append(event)

    def _begin(self, name: Any, part: _Part) -> _Part:
        if self._in_order:
            self._open.clear()
        self._open[name] = part
        self._parts.append(part)
        return part

    def events(self) -> Events:
        """Return everything."""
        if not self._in_order or len(self._parts) == 1:
            return Events(self._parts)
        parts: list[EventTable | EventRun] = []
        for part in self._parts:
            last = parts[-1] if parts else None
            if isinstance(part, EventTable) and len(part) >= _FEW:
                parts.append(part)
            elif isinstance(last, EventRun) and last.signal == part.signal:
                last.events.extend(part)
            else:
                parts.append(EventRun(part.signal, list(part)))
        return Events(parts)


def _is_plain(key: str, value: Any) -> bool:
    """Whether a value of mapping's own is what a table may hold."""
    kind = type(value)
    if kind is str or key in _TEXTS:
        return kind is str and key in _TEXTS
    if key in _NUMBERS:
        return kind in (int, float) and MIN_NUMBER <= value <= MAX_NUMBER
    return kind is int and INT64_MIN <= value <= INT64_MAX


class Events(OnDemand[Event]):
    """A batch of events in parts: tables, and runs of loose events.

    It reads as a sequence of events, which are made when somebody asks for them.

    Args:
        parts: In order; none is empty.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: Iterable[EventTable | EventRun]) -> None:
        self.parts = [part for part in parts if len(part)]
        super().__init__()

    @classmethod
    def of(cls, events: Sequence[Event]) -> Events:
        """Return events, in order, as such a batch; they may hold anything."""
        if type(events) is cls:
            return events
        runs = groupby(events, key=lambda event: event.signal)
        return cls(EventRun(signal, list(run)) for signal, run in runs)

    def placed_parts(self) -> Iterator[tuple[EventTable | EventRun, slice]]:
        """Yield each part, and which of the batch's events it holds."""
        start = 0
        for part in self.parts:
            end = start + len(part)
            yield part, slice(start, end)
            start = end

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _make(self) -> list[Event]:
        return [event for part in self.parts for event in part]

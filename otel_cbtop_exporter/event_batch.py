"""Batches of events in parts: tables, and runs of loose events.

Belongs here: how events are collected into parts, and how a batch of parts reads like a sequence
of events. Not here: what a table is (`event_table.py`).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, repeat
from operator import attrgetter
from typing import Any, TypeVar, cast

import msgspec

from otel_cbtop_exporter.errors import EventError
from otel_cbtop_exporter.event_table import (
    ID_FIELDS,
    INT64_MAX,
    INT64_MIN,
    MAX_NUMBER,
    MIN_NUMBER,
    TEXT_FIELDS,
    EventTable,
)
from otel_cbtop_exporter.events import SIGNAL_NAMES, Event, Signal
from otel_cbtop_exporter.on_demand import OnDemand
from otel_cbtop_exporter.tag_set import TagColumn, TagSet

__all__ = ["EventRun", "Events", "Part", "Tables", "tags_of"]

# A table of fewer events costs more than it saves. Where kinds of events alternate, and order
# matters, such tables become runs of loose events.
_FEW = 8

_TEXTS = ID_FIELDS | TEXT_FIELDS

# The ids of 64 bits, which cells hold as numbers.
_SPAN_IDS = frozenset({"linked_span_id", "parent_span_id", "span_id"})

# The number fields of mapped events that may be floats as well as integers; all others are
# integers.
_NUMBERS = frozenset({"value"})

_SIGNALS = tuple(SIGNAL_NAMES)  # no set: a hand-made signal need not be hashable


class EventRun(msgspec.Struct, frozen=True, gc=False):
    """Loose events of one signal, whose fields and attributes may hold anything.

    Attributes:
        signal: Their signal; None for events that were made by hand.
        events: The events in order, each with a `TagSet` as its tags.
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


Part = EventTable | EventRun


class _Cells:
    """A table that is still being filled, with all its cells in one list.

    A list for each column would take twice the time, and a tuple for each event would make work for
    the garbage collector.
    """

    __slots__ = ("_keys", "_measurement", "_signal", "_width", "cells")

    def __init__(self, measurement: str, signal: Signal, keys: tuple[str, ...]) -> None:
        self._measurement = measurement
        self._signal = signal
        self._keys = keys
        self._width = 4 + len(keys)
        self.cells: list[Any] = []

    def __len__(self) -> int:
        return len(self.cells) // self._width

    def table(self) -> EventTable:
        """Return the table of the events that were collected."""
        tag_sets, times_ns, trace_ids, attributes, *columns = [
            self.cells[at :: self._width] for at in range(self._width)
        ]
        for at, key in enumerate(self._keys):
            if key in _SPAN_IDS:
                columns[at] = _span_id_texts(columns[at])
        return EventTable(
            self._measurement,
            self._signal,
            self._keys,
            columns,
            TagColumn(tag_sets),
            times_ns,
            trace_ids,
            attributes,
        )


_Open = TypeVar("_Open", EventRun, _Cells)


class Tables:
    """Collects events into tables.

    Args:
        in_order: Whether the events stay in the order in which they came, as log records do. A
            table then ends where another one begins; otherwise there is one table for each kind.
    """

    __slots__ = ("_in_order", "_open", "_parts")

    def __init__(self, *, in_order: bool = False) -> None:
        self._in_order = in_order
        self._parts: list[Part | _Cells] = []
        self._open: dict[Any, EventRun | _Cells] = {}

    def cells(self, measurement: str, signal: Signal, keys: tuple[str, ...]) -> list[Any]:
        """Return the list of a table's cells, which the caller extends by each event.

        The cells of an event are its tag set, its time, its trace id or None, its attributes or
        None, and the values of its fields. A span id is given as a number, 0 if there is none.
        """
        name = (measurement, signal, keys)
        part = self._open.get(name)
        if not isinstance(part, _Cells):
            part = self._begin(name, _Cells(measurement, signal, keys))
        return part.cells

    def add_table(self, table: EventTable, *, plain: bool) -> None:
        """Add a table; if it is not `plain` (breaks a promise), add its events as loose ones."""
        if plain:
            self._parts.append(table)
            return
        for event in table:
            self.add_loose(event)

    def add(self, event: Event) -> None:
        """Add an event: to a table if it keeps a table's promises, else as a loose event."""
        fields = event.fields
        if (
            event.signal is None  # never made by mapping
            or type(event.timestamp_ns) is not int
            or not all(map(_is_plain, fields, fields.values()))
        ):
            self.add_loose(event)
            return
        cells = self.cells(event.measurement, event.signal, tuple(fields))
        cells.extend(
            (
                event.tags,
                event.timestamp_ns,
                event.correlation_id,
                event.attributes,
                *[
                    int(str(value) or "0", 16) if key in _SPAN_IDS else value
                    for key, value in fields.items()
                ],
            )
        )

    def add_loose(self, event: Event) -> None:
        """Add an event as a loose one, because a table is not worth it or must not hold it."""
        part = self._open.get(event.signal)
        if not isinstance(part, EventRun):
            part = self._begin(event.signal, EventRun(event.signal, []))
        part.events.append(event)

    def _begin(self, name: Any, part: _Open) -> _Open:
        if self._in_order:
            self._open.clear()
        self._open[name] = part
        self._parts.append(part)
        return part

    def events(self) -> Events:
        """Return all events that were added."""
        made: list[Part] = [
            part.table() if isinstance(part, _Cells) else part for part in self._parts if len(part)
        ]
        if not self._in_order or len(made) == 1:
            return Events(made)
        parts: list[Part] = []
        for part in made:
            last = parts[-1] if parts else None
            if not isinstance(part, EventRun) and len(part) >= _FEW:
                parts.append(part)
            elif isinstance(last, EventRun) and last.signal == part.signal:
                last.events.extend(part)
            else:
                parts.append(EventRun(part.signal, list(part)))
        return Events(parts)


def _span_id_texts(numbers: Sequence[int]) -> list[str]:
    """Return each number as 16 lower-case hex digits; "" for 0, which is not an id.

    Converting all of them at once takes two thirds of the time.

    Raises:
        OverflowError: A number has more than 64 bits.
    """
    ids = array("Q", numbers)
    if sys.byteorder == "little":
        ids.byteswap()
    digits = f" {ids.tobytes().hex(' ', 8)}"
    return digits.replace(" 0000000000000000", " ")[1:].split(" ")


def _usable(event: Event, known: dict[Any, TagSet]) -> Event:
    """Return an event, possibly hand-made, in the form that encoders expect.

    Args:
        event: Any.
        known: Tag sets of the batch, by the pairs of texts that they were made of.
    """
    if not isinstance(event, Event):
        raise EventError(f"a {type(event).__name__} is not an Event")
    if not isinstance(event.measurement, str):
        word = type(event.measurement).__name__
        raise EventError(f"measurement of an event is a {word}, not a text")
    if event.signal not in _SIGNALS:
        raise EventError(
            f"signal of an event of {event.measurement!r} is {event.signal!r}, allowed are None, "
            f"{', '.join(filter(None, SIGNAL_NAMES))}"
        )
    if type(event.tags) is TagSet:
        return event
    if not isinstance(event.tags, Mapping):
        word = type(event.tags).__name__
        raise EventError(f"tags of an event of {event.measurement!r} are a {word}, not a mapping")
    pairs = tuple(event.tags.items())
    try:
        tags = known.get(pairs)
    except TypeError:  # a value that cannot be hashed
        return msgspec.structs.replace(event, tags=TagSet(event.tags))
    if tags is None:
        tags = TagSet(event.tags)
        if all(type(text) is str for pair in pairs for text in pair):  # 1 is equal to True
            known[pairs] = tags
    return msgspec.structs.replace(event, tags=tags)


def tags_of(event: Event) -> TagSet:
    """Return the tags of an event from an `EventRun`, where they are always a `TagSet`."""
    return cast("TagSet", event.tags)


def _is_plain(key: str, value: Any) -> bool:
    """Say whether a table may hold a field that mapping made."""
    kind = type(value)
    if kind is str or key in _TEXTS:
        return kind is str and key in _TEXTS
    if key in _NUMBERS:
        return kind in (int, float) and MIN_NUMBER <= value <= MAX_NUMBER
    return kind is int and INT64_MIN <= value <= INT64_MAX


class Events(OnDemand[Event]):
    """A batch of events in parts: tables, and runs of loose events.

    It reads like a sequence of events; those of tables are made only when they are asked for.

    Args:
        parts: The parts in order; none is empty.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = list(parts)
        super().__init__()

    @classmethod
    def of(cls, events: Sequence[Event]) -> Events:
        """Return events, in order, as a batch of parts.

        Raises:
            EventError: One of them is not an `Event`, its measurement is not a text, its signal is
                unknown, or its tags are not a mapping.
        """
        if type(events) is cls:
            return events
        runs = groupby(map(_usable, events, repeat({})), key=attrgetter("signal"))
        return cls(EventRun(signal, list(run)) for signal, run in runs)

    def placed_parts(self) -> Iterator[tuple[Part, slice]]:
        """Yield each part, and the slice of the batch that it holds."""
        start = 0
        for part in self.parts:
            end = start + len(part)
            yield part, slice(start, end)
            start = end

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _make(self) -> list[Event]:
        return [event for part in self.parts for event in part]

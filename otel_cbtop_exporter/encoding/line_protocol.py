"""Events as InfluxDB's line protocol: one point per line, tags and fields sorted by key.

    spans,schema_version=1,service.name=shop,span.name=GET correlation_id="0af7",error=0i 1700000000

Belongs here: which parts of an event become tags and fields, of which type, and that no two events
become the same point. Not here: what a name or a text may contain (`line_protocol_text.py`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from otel_cbtop_exporter.encoding.json_values import encode_quoted, quoted_texts
from otel_cbtop_exporter.encoding.line_protocol_columns import render_columns
from otel_cbtop_exporter.encoding.line_protocol_fields import Fields, plan_fields, render_fields
from otel_cbtop_exporter.encoding.line_protocol_head import (
    MAX_HEAD_BYTES,
    Head,
    heads_of,
    point_slot,
    render_head,
    slot_of,
)
from otel_cbtop_exporter.encoding.line_protocol_limits import may_be_too_long, shortened
from otel_cbtop_exporter.encoding.line_protocol_points import render_points
from otel_cbtop_exporter.encoding.line_protocol_text import metric_text, string_text
from otel_cbtop_exporter.encoding.unique_points import CollectedPoints, UniquePoints
from otel_cbtop_exporter.event_batch import EventRun, Events, Part, tags_of
from otel_cbtop_exporter.event_table import TEXT_FIELDS, EventTable
from otel_cbtop_exporter.events import OF_A_TRACE, Event
from otel_cbtop_exporter.on_demand import Lines

__all__ = ["LineProtocolEncoder", "Refusal", "Rendered"]

_MAX_TIME_NS = 9_223_372_036_854_775_806


class Refusal(NamedTuple):
    """Why an event cannot be a point.

    Attributes:
        reason: A short stable word for counters.
        detail: A sentence that names the metric or the key; contains no values.
    """

    reason: str
    detail: str


class Rendered(NamedTuple):
    """The result of rendering a sequence of events.

    Attributes:
        bodies: One line per event, in order, without a newline; for a refused event, whatever
            could be rendered.
        times_ns: The times of the points, in the same order.
        refused: The refused events, by position.
        values_lost: How many values are missing or shortened in the lines: `field_left_out` (a
            field that line protocol cannot carry, such as NaN or a count beyond 64 bits),
            `tag_cut` (the point's key was too long), `field_cut` (a text, or the attributes, were
            too long).
    """

    bodies: Sequence[bytes]
    times_ns: list[int]
    refused: dict[int, Refusal]
    values_lost: Mapping[str, int] = {}


class LineProtocolEncoder:
    """Turns events into lines, and remembers which points it made.

    Safe to share between threads. Spans, span events and links, logs, exemplars and hand-made
    events that would have the measurement, tags and time of an earlier one are moved to the next
    free nanosecond, with the exact time in `original_timestamp_ns`; a second metric point is
    refused. Once rendered, the bytes are the point: sending them again sends the same point.

    Args:
        trace_id_tag_digits: How many of the first hex digits of a trace id become the tag
            `trace_id_prefix` of spans and logs; 0 for no tag.
    """

    def __init__(self, *, trace_id_tag_digits: int = 0) -> None:
        self._trace_digits = trace_id_tag_digits
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Start with empty tables: the child's series differ by `service.instance.id`."""
        # Reentrant: a signal handler may send an event on the thread that holds the lock.
        self._lock = threading.RLock()
        self._points = UniquePoints()
        self._collected = CollectedPoints()

    def encode(self, events: Sequence[Event]) -> Rendered:
        """Render events; whatever they hold, this never raises."""
        bodies: list[bytes] = []
        times_ns: list[int] = []
        refused: dict[int, Refusal] = {}
        values_lost = Counter[str]()
        for part in Events.of(events).parts:
            made = self.encode_part(part)
            refused.update((len(bodies) + position, why) for position, why in made.refused.items())
            values_lost.update(made.values_lost)
            bodies += made.bodies
            times_ns += made.times_ns
        return Rendered(bodies, times_ns, refused, values_lost)

    def encode_part(self, part: Part) -> Rendered:
        """Render one part of a batch, as `encode` does."""
        rendered: Rendered | None = None
        if isinstance(part, EventTable) and part.metric is not None:
            rendered = self._render_points(part, metric_text(part.metric))
        elif not isinstance(part, EventRun):
            rendered = self._render_table(part)
        return rendered or self._render_events(list(part))

    def _render_table(self, table: EventTable) -> Rendered | None:
        """Render a table; return None, with no point taken, if something in it is unusual."""
        times_ns, trace_ids, attributes = table.times_ns, table.trace_ids, table.attributes
        slot = slot_of(table.measurement)
        slots: Iterable[Any] = repeat(slot)
        prefixes: Iterable[str] = repeat("")
        if self._trace_digits and trace_ids and table.signal in OF_A_TRACE:
            prefixes = [(trace_id or "")[: self._trace_digits] for trace_id in trace_ids]
            slots = [(slot, prefix) if prefix else slot for prefix in prefixes]
        heads = heads_of(table, slots, prefixes)
        if heads is None or not _can_be_kept(times_ns) or _has_long_text(table):
            return None
        has_attributes, has_trace_id = _has(attributes), _has(trace_ids)
        texts: Sequence[str] = ()
        if attributes and has_attributes:
            texts = quoted_texts(attributes)
        elif attributes and has_attributes is None:
            quoted = quoted_texts([one or {} for one in attributes])
            texts = [t if one else "" for t, one in zip(quoted, attributes, strict=True)]
        if texts and may_be_too_long(texts):
            return None
        with self._lock:
            taken_ns = self._points.take_next_all(heads, times_ns)
        originals: Iterable[str] = repeat("")
        if taken_ns is not times_ns:
            originals = [
                "" if taken == time_ns else str(time_ns)
                for taken, time_ns in zip(taken_ns, times_ns, strict=True)
            ]
        was_moved = None if taken_ns is not times_ns else False
        render = render_columns(table.keys, (has_attributes, has_trace_id, was_moved))
        ids = trace_ids or repeat(None)
        bodies = render(heads, taken_ns, originals, texts or repeat(""), ids, table.columns)
        return Rendered(bodies, taken_ns, {})

    def _render_points(self, table: EventTable, metric: str) -> Rendered | None:
        """Render a table; return None, with no point taken, if something in it is unusual."""
        times_ns = table.times_ns
        slot = point_slot(table.measurement)
        cache = table.tag_sets.rendered
        heads = cache.get(slot) or heads_of(table, repeat(slot), repeat(""))
        one_time = times_ns.count(times_ns[0]) == len(times_ns)  # as in every collection
        if heads is None or not one_time or not _can_be_kept(times_ns[:1]):
            return None
        cache[slot] = heads
        text = render_points(table, heads, metric)
        with self._lock:
            if not self._collected.take_all(heads, times_ns[0]):
                return None
        return Rendered(Lines(text, len(times_ns)), times_ns, {})

    def _render_events(self, events: Sequence[Event]) -> Rendered:
        """Render events, whatever they hold; count or refuse what does not fit."""
        heads: list[Head] = []
        refused: dict[int, Refusal] = {}
        values_lost = Counter[str]()
        for position, event in enumerate(events):
            try:
                heads.append(self._head_of(event))
            # A hand-made event may raise anything. If that got out, all events would be encoded
            # again, and those whose times are taken already would be moved.
            except Exception as error:  # noqa: BLE001, PERF203
                refused[position] = _invalid(event, error)
                heads.append(Head("", None))
        times_ns = self._take_times(events, heads, refused)
        bodies: list[bytes] = []
        rows = zip(events, heads, times_ns, strict=True)
        for position, (event, head, time_ns) in enumerate(rows):
            try:
                fields = _fields_of(event, time_ns)
            except Exception as error:  # noqa: BLE001  as above
                refused[position] = _invalid(event, error)
                bodies.append(b"")
                continue
            if head.values_cut:
                values_lost["tag_cut"] += head.values_cut
            if fields.left_out:
                values_lost["field_left_out"] += fields.left_out
            if fields.cut:
                values_lost["field_cut"] += fields.cut
            if not fields.text:
                reason = f"{event.measurement!r} has no field that InfluxDB can carry"
                refused.setdefault(position, Refusal("no_field", reason))
            elif head.values_cut is not None and len(head.text.encode()) > MAX_HEAD_BYTES:
                name = event.measurement[:100]
                reason = f"the tag keys of {name!r} are over {MAX_HEAD_BYTES} bytes"
                refused.setdefault(position, Refusal("too_large", reason))
            bodies.append(f"{head.text} {fields.text} {time_ns}".encode())
        return Rendered(bodies, times_ns, refused, values_lost)

    def _take_times(
        self, events: Sequence[Event], heads: list[Head], refused: dict[int, Refusal]
    ) -> list[int]:
        times_ns: list[int] = []
        with self._lock:
            take_next = self._points.take_next
            for event, head in zip(events, heads, strict=True):
                time_ns = event.timestamp_ns
                if len(times_ns) in refused:
                    pass
                elif type(time_ns) is not int or not -_MAX_TIME_NS <= time_ns < _MAX_TIME_NS:
                    refused[len(times_ns)] = Refusal(
                        "invalid_time",
                        f"the time of {event.measurement!r} is outside of what InfluxDB keeps",
                    )
                elif event.signal is None:
                    time_ns = take_next(head.text, time_ns)
                    # It must also differ from the points that metrics have taken.
                    while not self._collected.take_all([head.text.encode()], time_ns):
                        time_ns = take_next(head.text, time_ns)
                elif event.signal != "metric":
                    time_ns = take_next(head.text, time_ns)
                elif not self._collected.take_all([_point_head(event, head)], time_ns):
                    refused[len(times_ns)] = Refusal(
                        "duplicate_point",
                        f"metric {event.measurement!r} has a second point of the same attributes "
                        "and time: two instruments or views write under this name, or attributes "
                        "differ in nothing that tags show, such as 200 and '200' of a gauge; "
                        "rename one, or tell them apart by an attribute",
                    )
                times_ns.append(time_ns)
        return times_ns

    def _head_of(self, event: Event) -> Head:
        """Return measurement and tags, from the tag set's cache if they are there."""
        measurement, tags = event.measurement, tags_of(event)
        trace_id = event.correlation_id if event.signal in OF_A_TRACE else None
        prefix = (trace_id or "")[: self._trace_digits]
        slot = (slot_of(measurement), prefix) if prefix else slot_of(measurement)
        text: str | None = tags.rendered.get(slot)
        if text is not None:
            return Head(text, None)
        head = render_head(measurement, tags, prefix)
        if head.values_cut is None:
            tags.rendered[slot] = head.text
        return head


def _invalid(event: Event, error: Exception) -> Refusal:
    word = type(error).__name__
    return Refusal("invalid", f"an event of {event.measurement!r} is refused: {word}")


def _fields_of(event: Event, time_ns: int) -> Fields:
    hand_made = event.signal is None
    tag_keys = tuple(event.tags) if hand_made else ()  # a field may have the name of a tag
    plan = plan_fields(tuple(event.fields), hand_made=hand_made, tag_keys=tag_keys)
    attributes, cut = event.attributes, 0
    if attributes and may_be_too_long([quoted := encode_quoted(attributes)]):
        attributes, cut = shortened(attributes)
        quoted = encode_quoted(attributes)
    added = (
        quoted if attributes else "",
        string_text(event.correlation_id) if event.correlation_id else "",
        metric_text(event.metric) if event.metric else "",
        f"{event.timestamp_ns}i" if time_ns != event.timestamp_ns else "",
    )
    fields = render_fields(event, plan, added)
    return fields._replace(cut=fields.cut + cut)


def _point_head(event: Event, head: Head) -> bytes:
    """Return a head as bytes, as for the points of a table; the same object for a series."""
    if head.values_cut is not None:
        return head.text.encode()
    cache = tags_of(event).rendered
    slot = point_slot(event.measurement)
    point_head: bytes = cache.get(slot) or cache.setdefault(slot, head.text.encode())
    return point_head


def _has_long_text(table: EventTable) -> bool:
    columns = zip(table.keys, table.columns, strict=True)
    return any(key in TEXT_FIELDS and may_be_too_long(column) for key, column in columns)


def _can_be_kept(times_ns: Sequence[int]) -> bool:
    return min(times_ns) >= -_MAX_TIME_NS and max(times_ns) < _MAX_TIME_NS


def _has(column: Sequence[object] | None) -> bool | None:
    """Say whether all values of a column are present; None if only some are."""
    if column is None:
        return False
    return True if all(column) else None if any(column) else False

"""Events as InfluxDB's line protocol: one point a line, tags and fields sorted by key.

    spans,schema_version=1,service.name=shop,span.name=GET correlation_id="0af7",error=0i 1700000000

Belongs here: what of an event becomes a tag or a field, its type, and that no two events are
one point. Not here: what a name or a text may hold (`line_protocol_text.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from otel_cbtop_exporter.encoding.event_json import encode_quoted
from otel_cbtop_exporter.encoding.line_protocol_code import number_texts, render_rows
from otel_cbtop_exporter.encoding.line_protocol_fields import (
    plan_fields,
    render_fields,
)
from otel_cbtop_exporter.encoding.line_protocol_head import MAX_HEAD_BYTES, Head, render_head
from otel_cbtop_exporter.encoding.line_protocol_text import string_text
from otel_cbtop_exporter.encoding.unique_points import UniquePoints
from otel_cbtop_exporter.event_table import Events, EventTable
from otel_cbtop_exporter.events import Event, MetricInfo
from otel_cbtop_exporter.tag_set import TagSet

__all__ = ["LineProtocolEncoder", "Lines", "Refusal"]

_BY_TRACE = frozenset({"span", "span_event", "span_link", "log"})

_MAX_TIME_NS = 9_223_372_036_854_775_806

# Bound of the cache of metrics' descriptions.
_MAX_METRICS = 4_096


class Refusal(NamedTuple):
    """Why an event cannot be a point.

    Attributes:
        reason: A short stable word for counters.
        detail: A sentence that names the metric or the key; holds no values.
    """

    reason: str
    detail: str


class Lines(NamedTuple):
    """What became of a sequence of events.

    Attributes:
        bodies: One line an event, in order, without a newline; of a refused event what could
            be rendered.
        times_ns: The points' times, in the same order.
        refused: By position.
    """

    bodies: list[bytes]
    times_ns: list[int]
    refused: dict[int, Refusal]


class LineProtocolEncoder:
    """Turns events into lines, and remembers which points it made.

    Safe to share between threads. Spans, their events and links, logs, exemplars and
    hand-made events that would share measurement, tags and time with an earlier one are moved
    to the next free nanosecond, with the exact time in `original_timestamp_ns`; a second
    metric point is refused. The bytes are the point from then on: whoever sends them again
    sends the same point.

    Args:
        trace_id_tag_digits: First hex digits of the trace id of spans and logs that become
            the tag `trace_id_prefix`; 0 for none.
    """

    def __init__(self, *, trace_id_tag_digits: int = 0) -> None:
        self.fields_left_out = 0
        """Fields that line protocol cannot carry (NaN, a count beyond 64 bits), so far."""
        self.tag_values_cut = 0
        """Tag values that were cut because the point's key was too long, so far."""
        self._trace_digits = trace_id_tag_digits
        self._metrics: dict[int, tuple[MetricInfo, str]] = {}
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Begin with an empty table: the child's series differ by `service.instance.id`."""
        # Reentrant: a signal handler may send an event on the thread that holds it.
        self._lock = threading.RLock()
        self._points = UniquePoints()

    def encode(self, events: Sequence[Event]) -> Lines:
        """Render events; never raises for what they hold."""
        lines = Lines([], [], {})
        for part in Events.of(events).parts:
            if type(part) is not EventTable or not self._add_table(part, lines):
                self._add_events(list(part), lines)
        return lines

    def _add_table(self, table: EventTable, lines: Lines) -> bool:
        """Render a table; False if something in it is not as usual, and nothing was done."""
        rows = table.rows
        times_ns: Sequence[int] = table.times_ns
        if min(times_ns) < -_MAX_TIME_NS or max(times_ns) >= _MAX_TIME_NS:
            return False
        heads = self._heads(table)
        if heads is None:
            return False
        # Everything that looks at values comes before a point is taken.
        texts: Iterable[Any] = repeat(None)
        if table.signal == "metric":
            texts = zip(*[iter(number_texts(rows))] * len(table.keys), strict=True)
        info = self._metric_text(table.metric) if table.metric else ""
        originals: Iterable[str] = repeat("")
        moved: bool | None = False
        with self._lock:
            if table.signal != "metric":
                taken_ns = self._points.take_next_all(heads, times_ns)
            elif self._points.take_all(heads, times_ns):
                taken_ns = times_ns
            else:
                return False
        if taken_ns is not times_ns:
            originals = [
                "" if taken == time_ns else str(time_ns)
                for taken, time_ns in zip(taken_ns, times_ns, strict=True)
            ]
            times_ns, moved = taken_ns, None
        added = (
            _has([row.attributes for row in rows]),
            _has([row.correlation_id for row in rows]),
            table.metric is not None,
            moved,
        )
        render = render_rows(table.keys, added, numbers=table.signal == "metric")
        lines.bodies.extend(render(rows, heads, times_ns, originals, info, texts))
        lines.times_ns.extend(times_ns)
        return True

    def _heads(self, table: EventTable) -> list[str] | None:
        """Return the head of each row; None if one is too long to be written whole."""
        measurement = table.measurement
        digits = self._trace_digits if table.signal in _BY_TRACE else 0
        slot = _slot(measurement)
        slots: Iterable[Any] = repeat(slot)
        trace_ids: Iterable[str] = repeat("")
        if digits:
            trace_ids = [(row.correlation_id or "")[:digits] for row in table.rows]
            slots = [(slot, trace_id) if trace_id else slot for trace_id in trace_ids]
        pairs = zip(table.tag_sets, slots, strict=False)
        found: list[Any] = [tags.rendered.get(of) for tags, of in pairs]
        if None in found:
            columns = zip(table.tag_sets, slots, trace_ids, strict=False)
            for position, (tags, of, trace_id) in enumerate(columns):
                text = tags.rendered.get(of)  # of a row before this one
                if text is None:
                    text, values_cut = render_head(measurement, tags, trace_id)
                    if values_cut is not None:
                        return None
                    tags.rendered[of] = text
                found[position] = text
        return found

    def _add_events(self, events: Sequence[Event], lines: Lines) -> None:
        """Render whatever events hold; count or refuse what does not fit."""
        heads = [self._head_of(event) for event in events]
        refused: dict[int, Refusal] = {}
        times_ns = self._take_times(events, heads, refused)
        for position, (event, head, time_ns) in enumerate(
            zip(events, heads, times_ns, strict=True)
        ):
            hand_made = event.signal is None
            # A field's name may clash with a tag's.
            clashes = hand_made and not event.fields.keys().isdisjoint(event.tags)
            plan = plan_fields(
                tuple(event.fields),
                hand_made=hand_made,
                tag_keys=frozenset(event.tags) if clashes else frozenset(),
            )
            added = (
                encode_quoted(event.attributes) if event.attributes else "",
                string_text(event.correlation_id) if event.correlation_id else "",
                self._metric_text(event.metric) if event.metric else "",
                f"{event.timestamp_ns}i" if time_ns != event.timestamp_ns else "",
            )
            fields = render_fields(event, plan, added)
            if head.values_cut or fields.left_out:
                with self._lock:
                    self.tag_values_cut += head.values_cut or 0
                    self.fields_left_out += fields.left_out
            if not fields.text:
                reason = f"{event.measurement!r} has no field that InfluxDB can carry"
                refused.setdefault(position, Refusal("no_field", reason))
            elif head.values_cut is not None and len(head.text.encode()) > MAX_HEAD_BYTES:
                name = event.measurement[:100]
                reason = f"the tag keys of {name!r} are over {MAX_HEAD_BYTES} bytes"
                refused.setdefault(position, Refusal("too_large", reason))
            lines.bodies.append(f"{head.text} {fields.text} {time_ns}".encode())
        start = len(lines.times_ns)
        lines.times_ns.extend(times_ns)
        lines.refused.update((start + position, why) for position, why in refused.items())

    def _take_times(
        self, events: Sequence[Event], heads: list[Head], refused: dict[int, Refusal]
    ) -> list[int]:
        times_ns: list[int] = []
        with self._lock:
            take, take_next = self._points.take, self._points.take_next
            for event, head in zip(events, heads, strict=True):
                time_ns = event.timestamp_ns
                if type(time_ns) is not int or not -_MAX_TIME_NS <= time_ns < _MAX_TIME_NS:
                    refused[len(times_ns)] = Refusal(
                        "invalid_time",
                        f"the time of {event.measurement!r} is outside of what InfluxDB keeps",
                    )
                elif event.signal != "metric":
                    time_ns = take_next(head.text, time_ns)
                elif not take(head.text, time_ns):
                    refused[len(times_ns)] = Refusal(
                        "duplicate_point",
                        f"metric {event.measurement!r} has a second point of the same attributes "
                        "and time: two instruments or views write under this name; rename one, "
                        "or tell them apart by an attribute",
                    )
                times_ns.append(time_ns)
        return times_ns

    def _head_of(self, event: Event) -> Head:
        digits = self._trace_digits if event.signal in _BY_TRACE else 0
        return self._head(event.measurement, event.tags, event.correlation_id if digits else None)

    def _head(self, measurement: str, tags: Mapping[str, str], trace: str | None) -> Head:
        """Return measurement and tags, from the tag set's own cache where it has one."""
        trace_id = trace[: self._trace_digits] if trace else None
        if type(tags) is not TagSet:
            return render_head(measurement, tags, trace_id)
        slot = _slot(measurement) if trace is None else (_slot(measurement), trace_id)
        text: str | None = tags.rendered.get(slot)
        if text is not None:
            return Head(text, None)
        head = render_head(measurement, tags, trace_id)
        if head.values_cut is None:
            tags.rendered[slot] = head.text
        return head

    def _metric_text(self, metric: MetricInfo) -> str:
        known = self._metrics.get(id(metric))
        if known is not None and known[0] is metric:
            return known[1]
        text = encode_quoted(metric)
        # The points of a stream share one object; an exponential histogram's are all new.
        if metric.scale is None:
            if len(self._metrics) >= _MAX_METRICS:
                self._metrics.clear()
            self._metrics[id(metric)] = (metric, text)
        return text


def _has(column: Sequence[object]) -> bool | None:
    """Whether all of a column is there; None if some of it is."""
    return True if all(column) else None if any(column) else False


def _slot(measurement: str) -> str:
    """Return under which key a tag set keeps its head."""
    return f"line {measurement}"

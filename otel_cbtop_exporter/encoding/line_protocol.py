"""Events as InfluxDB's line protocol: one point a line, tags and fields sorted by key.

    spans,schema_version=1,service.name=shop,span.name=GET correlation_id="0af7",error=0i 1700000000

Belongs here: what of an event becomes a tag or a field, its type, and that no two events are
one point. Not here: what a name or a text may hold (`line_protocol_text.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from otel_cbtop_exporter.encoding.line_protocol_code import RenderLine, generate
from otel_cbtop_exporter.encoding.line_protocol_fields import (
    Plan,
    make_plan,
    quoted_json,
    render_fields,
)
from otel_cbtop_exporter.encoding.line_protocol_head import MAX_HEAD_BYTES, Head, render_head
from otel_cbtop_exporter.encoding.line_protocol_text import string_text
from otel_cbtop_exporter.encoding.unique_points import UniquePoints
from otel_cbtop_exporter.events import Event, MetricInfo, TagSet

__all__ = ["LineProtocolEncoder", "Lines", "Refusal"]

_BY_TRACE = frozenset({"span", "span_event", "span_link", "log"})

_MAX_TIME_NS = 9_223_372_036_854_775_806

# After so many events of one shape, a function is made for it.
_OFTEN = 8

# Bounds of the caches: sets of field names, and metrics' descriptions.
_MAX_SHAPES = 4_096
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


class _Shape:
    """What is known of events whose fields have the same names.

    Attributes:
        plan: The order of their fields.
        seen: How many were rendered without a function of their own.
        render: That function; it renders nothing before it is made. The buckets of an
            exponential histogram may be new in every point, which is not worth making one.
    """

    __slots__ = ("plan", "render", "seen")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.seen = 0
        self.render: RenderLine = _render_nothing


def _render_nothing(*_: Any) -> None:
    return None


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
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._metrics: dict[int, tuple[MetricInfo, str]] = {}
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Begin with an empty table: the child's series differ by `service.instance.id`."""
        # Reentrant: a signal handler may send an event on the thread that holds it.
        self._lock = threading.RLock()
        self._points = UniquePoints()

    def encode(self, events: Sequence[Event]) -> Lines:
        """Render events; never raises for what they hold."""
        refused: dict[int, Refusal] = {}
        heads = [self._head(event) for event in events]
        times_ns = self._take_times(events, heads, refused)
        bodies: list[bytes] = []
        for event, head, time_ns in zip(events, heads, times_ns, strict=True):
            fields = event.fields
            attributes = event.attributes
            trace = event.correlation_id
            metric = event.metric
            hand_made = event.signal is None
            moved = time_ns != event.timestamp_ns
            # What decides about the order and the types of the fields.
            shape = (hand_made, not attributes, not trace, metric is None, moved, *fields)
            known = self._shapes.get(shape)
            if known is None:
                known = self._new_shape(event, shape)
            added = (
                quoted_json(attributes) if attributes else "",
                string_text(trace) if trace else "",
                self._metric_text(metric) if metric else "",
                f"{event.timestamp_ns}i" if moved else "",
            )
            if head.values_cut is not None or (hand_made and _has_clash(event)):
                line = None
            else:
                line = known.render(head.text, fields, *added, time_ns)
            if line is None:
                line = self._any_line(event, head, known, added, time_ns, len(bodies), refused)
            bodies.append(line.encode())
        return Lines(bodies, times_ns, refused)

    def _any_line(
        self,
        event: Event,
        head: Head,
        shape: _Shape,
        added: tuple[str, str, str, str],
        time_ns: int,
        position: int,
        refused: dict[int, Refusal],
    ) -> str:
        """Render whatever an event holds; count or refuse what does not fit."""
        shape.seen += 1
        if shape.seen == _OFTEN and event.fields:  # a function of no fields would refuse nothing
            shape.render = generate(shape.plan, tuple(event.fields), tuple(map(bool, added)))
        # A field's name may clash with a tag's.
        plan = make_plan(event) if event.signal is None else shape.plan
        fields = render_fields(event, plan, added)
        with self._lock:
            self.tag_values_cut += head.values_cut or 0
            self.fields_left_out += fields.left_out
        if not fields.text:
            reason = f"{event.measurement!r} has no field that InfluxDB can carry"
            refused.setdefault(position, Refusal("no_field", reason))
        elif head.values_cut is not None and len(head.text.encode()) > MAX_HEAD_BYTES:
            reason = f"the tag keys of {event.measurement[:100]!r} are over {MAX_HEAD_BYTES} bytes"
            refused.setdefault(position, Refusal("too_large", reason))
        return f"{head.text} {fields.text} {time_ns}"

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

    def _head(self, event: Event) -> Head:
        """Return measurement and tags, from the tag set's own cache where it has one."""
        tags = event.tags
        slot: Any = event.measurement
        trace_id = None
        if self._trace_digits and event.signal in _BY_TRACE and event.correlation_id:
            trace_id = event.correlation_id[: self._trace_digits]
            slot = (slot, trace_id)
        if type(tags) is not TagSet:
            return render_head(event.measurement, tags, trace_id)
        head: Head | None = tags.heads.get(slot)
        if head is None:
            head = tags.heads[slot] = render_head(event.measurement, tags, trace_id)
        return head

    def _new_shape(self, event: Event, shape: tuple[Any, ...]) -> _Shape:
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        clashes = event.signal is None and _has_clash(event)
        plan = make_plan(msgspec.structs.replace(event, tags={}) if clashes else event)
        made = self._shapes[shape] = _Shape(plan)
        return made

    def _metric_text(self, metric: MetricInfo) -> str:
        known = self._metrics.get(id(metric))
        if known is not None and known[0] is metric:
            return known[1]
        text = quoted_json(metric)
        # The points of a stream share one object; an exponential histogram's are all new.
        if metric.scale is None:
            if len(self._metrics) >= _MAX_METRICS:
                self._metrics.clear()
            self._metrics[id(metric)] = (metric, text)
        return text


def _has_clash(event: Event) -> bool:
    """Whether a field has the name of a tag, which decides about the field's name."""
    return not event.fields.keys().isdisjoint(event.tags)

"""Counts events, and how many of them OpenTelemetry counts as well: spans, logs, data points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import msgspec

from otel_cbtop_exporter.event_batch import Events
from otel_cbtop_exporter.sinks.records import Records

__all__ = ["HasSignal", "Tally"]


class HasSignal(Protocol):
    """An event, or the record of an event."""

    @property
    def signal(self) -> str | None:
        """The kind of data it was made from; None on hand-made events."""
        ...


class Tally(msgspec.Struct, frozen=True):
    """A number of events, by kind; tallies can be added and subtracted.

    Attributes:
        events: All events, including span events, links, exemplars and hand-made ones.
        spans: The events that are spans.
        log_records: The events that are log records.
        data_points: The events that are data points of metrics.
    """

    events: int = 0
    spans: int = 0
    log_records: int = 0
    data_points: int = 0

    @classmethod
    def of(cls, things: Sequence[HasSignal]) -> Tally:
        """Count events or records."""
        if isinstance(things, Records | Events):
            # Counted by parts, so that no event or record has to be made.
            counts = Counter[str | None]()
            for part in things.blocks if isinstance(things, Records) else things.parts:
                counts[part.signal] += len(part)
            return cls(len(things), counts["span"], counts["log"], counts["metric"])
        # A caller may pass anything as an event, and it is counted even if it is lost.
        signals = [getattr(thing, "signal", None) for thing in things]
        return cls(
            len(signals), signals.count("span"), signals.count("log"), signals.count("metric")
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.events + other.events,
            self.spans + other.spans,
            self.log_records + other.log_records,
            self.data_points + other.data_points,
        )

    def __sub__(self, other: Tally) -> Tally:
        return Tally(
            self.events - other.events,
            self.spans - other.spans,
            self.log_records - other.log_records,
            self.data_points - other.data_points,
        )

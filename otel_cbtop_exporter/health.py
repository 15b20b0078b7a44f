"""What became of the records, in numbers: counters, and `SinkHealth`.

Everything here is thread-safe and never blocks for long.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from otel_cbtop_exporter.sdk_metrics import SdkMetrics
from otel_cbtop_exporter.tally import HasSignal, Tally

__all__ = ["HealthCounters", "SinkHealth", "combined", "statistics_of"]

_ERROR_LENGTH = 300


class SinkHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How a sink is doing at one moment, in this process.

    Attributes:
        connected: Whether the destination accepted or judged records in the last write. False
            before the first write, and while it refuses the login or answers with an error for all
            records.
        last_write_ns: When it last accepted something, nanoseconds since the Unix epoch.
        events_written: Events that the destination has acknowledged.
        write_errors: Writes that did not deliver everything.
        events_rejected: Events that were refused for good. Those that a sink or its destination
            refused are in the dead letters, if a spool path is set.
        events_dropped: Events that were lost, by reason, for example `spool_full`, `shutdown`.
        values_lost: Values missing or shortened in events, by reason: `non_finite` (a field of a
            metric), `field_left_out` (line protocol cannot carry it), `tag_cut` and `field_cut`
            (too long).
        events_spooled: Events that wait in the spool.
        spool_bytes: Bytes that they take: compressed, except for the first few MiB in memory.
        oldest_spooled_ns: When the oldest of them was accepted, nanoseconds since the Unix epoch.
        last_error: The last error, without secrets or data; "" if there was none.
        client_statistics: What the sink's client library counts itself, by name: Kafka's, and that
            of a sink of your own.
    """

    connected: bool = False
    last_write_ns: int | None = None
    events_written: int = 0
    write_errors: int = 0
    events_rejected: int = 0
    events_dropped: Mapping[str, int] = msgspec.field(default_factory=dict)
    values_lost: Mapping[str, int] = msgspec.field(default_factory=dict)
    events_spooled: int = 0
    spool_bytes: int = 0
    oldest_spooled_ns: int | None = None
    last_error: str = ""
    client_statistics: Mapping[str, float] = msgspec.field(default_factory=dict)


def statistics_of(sink: Any) -> dict[str, float]:
    """Return those statistics of a sink that are numbers with a name, as only such add up.

    The method is optional, and not in the Sink protocol: most sinks' clients keep no statistics.
    """
    return {
        name: number
        for name, number in getattr(sink, "statistics", dict)().items()
        if isinstance(name, str) and isinstance(number, int | float)
    }


def combined(healths: Sequence[SinkHealth]) -> SinkHealth:
    """Return the health of several sinks together: counts are summed, of the rest the worst."""
    if len(healths) == 1:
        return healths[0]
    dropped: Counter[str] = Counter()
    values_lost: Counter[str] = Counter()
    statistics: dict[str, float] = {}
    for health in healths:
        dropped.update(health.events_dropped)
        values_lost.update(health.values_lost)
        for key, value in health.client_statistics.items():
            before = statistics.get(key, 0)
            statistics[key] = max(before, value) if key.endswith("_us") else before + value
    writes = [h.last_write_ns for h in healths if h.last_write_ns is not None]
    oldest = [h.oldest_spooled_ns for h in healths if h.oldest_spooled_ns is not None]
    return SinkHealth(
        connected=bool(healths) and all(h.connected for h in healths),
        last_write_ns=min(writes, default=None),
        events_written=sum(h.events_written for h in healths),
        write_errors=sum(h.write_errors for h in healths),
        events_rejected=sum(h.events_rejected for h in healths),
        events_dropped=dict(dropped),
        values_lost=dict(values_lost),
        events_spooled=sum(h.events_spooled for h in healths),
        spool_bytes=sum(h.spool_bytes for h in healths),
        oldest_spooled_ns=min(oldest, default=None),
        last_error="; ".join(h.last_error for h in healths if h.last_error),
        client_statistics=statistics,
    )


class HealthCounters:
    """Counts events by outcome, exactly, from any thread.

    Args:
        metrics: Counts every outcome as well, for OpenTelemetry metrics; None without them.
    """

    def __init__(self, metrics: SdkMetrics | None = None) -> None:
        self._metrics = metrics
        # Reentrant: a signal handler may end a span on the thread that holds it.
        self._lock = threading.RLock()
        self._connected = False
        self._last_write_ns: int | None = None
        self._written = 0
        self._errors = 0
        self._rejected = 0
        self._dropped: dict[str, int] = {}
        self._values_lost: dict[str, int] = {}
        self._last_error = ""
        self.write_seconds = 0.0
        """How long the last write took that delivered everything."""

    @property
    def last_error(self) -> str:
        """The last error, or ""."""
        return self._last_error

    def written(self, records: Sequence[HasSignal], now_ns: int) -> None:
        """Count records that the destination acknowledged."""
        with self._lock:
            self._connected = True
            self._last_write_ns = now_ns
            self._written += len(records)
        if self._metrics is not None:
            self._metrics.exported(Tally.of(records))

    def write_took(self, seconds: float, error_type: str) -> None:
        """Note how long one write took; `error_type` is "" if it delivered everything."""
        if not error_type:
            self.write_seconds = seconds
        if self._metrics is not None:
            self._metrics.operation(seconds, error_type)

    def write_failed(self, error: str, *, connected: bool) -> None:
        """Count a write that did not deliver everything.

        Args:
            error: One sentence without secrets or data; it is cut at 300 characters.
            connected: Whether the destination accepted or judged records all the same.
        """
        with self._lock:
            self._connected = connected
            self._errors += 1
            self._last_error = error[:_ERROR_LENGTH]

    def rejected(self, reason: str, tally: Tally) -> None:
        """Count events that were refused for good."""
        with self._lock:
            self._rejected += tally.events
        if self._metrics is not None:
            self._metrics.exported(tally, reason)

    def dropped(self, reason: str, tally: Tally) -> None:
        """Count events that are lost."""
        with self._lock:
            self._dropped[reason] = self._dropped.get(reason, 0) + tally.events
        if self._metrics is not None:
            self._metrics.exported(tally, reason)

    def values_lost(self, reason: str, values: int) -> None:
        """Count values that are missing or shortened in events that themselves are not lost."""
        with self._lock:
            self._values_lost[reason] = self._values_lost.get(reason, 0) + values

    def snapshot(self) -> SinkHealth:
        """Return all counters as of one moment."""
        with self._lock:
            return SinkHealth(
                connected=self._connected,
                last_write_ns=self._last_write_ns,
                events_written=self._written,
                write_errors=self._errors,
                events_rejected=self._rejected,
                events_dropped=dict(self._dropped),
                values_lost=dict(self._values_lost),
                last_error=self._last_error,
            )

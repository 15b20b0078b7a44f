"""Test doubles for code that uses this package: a sink and a clock.

Both are real implementations of public protocols, so tests need no mocks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from otel_cbtop_exporter.encoding.event_json import encode_events
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.sinks.base import Encoded, Record, Records, WriteResult

__all__ = ["FakeClock", "RecordingSink"]

Answer = WriteResult | Callable[[Sequence[Record]], WriteResult]


class FakeClock:
    """A clock that moves only when someone waits or a test moves it; safe to share between threads.

    Args:
        start_seconds: The first value of `monotonic`.
        start_ns: The first value of `time_ns`.
    """

    def __init__(
        self, start_seconds: float = 1_000.0, start_ns: int = 1_700_000_000_000_000_000
    ) -> None:
        self._lock = threading.Lock()
        self._seconds = start_seconds
        self._ns = start_ns
        self.waits: list[float] = []
        """Every wait that had a timeout, in order, in seconds."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return self._seconds

    def time_ns(self) -> int:
        """Return nanoseconds since the Unix epoch; `set_back` moves them back."""
        return self._ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self._lock:
            self._seconds += seconds
            self._ns += int(seconds * 1e9)

    def set_back(self, seconds: float) -> None:
        """Set the wall clock back, as an administrator would; `monotonic` does not notice."""
        with self._lock:
            self._ns -= int(seconds * 1e9)

    def wait(self, condition: threading.Condition, timeout_seconds: float | None) -> None:
        """Let the timeout pass at once; without a timeout, really wait to be notified.

        Args:
            condition: The condition to wait for, whose lock the caller holds.
            timeout_seconds: The time that passes; None waits without a limit.
        """
        if timeout_seconds is None:
            condition.wait()
            return
        self.waits.append(timeout_seconds)
        self.advance(timeout_seconds)


class RecordingSink:
    """A sink that keeps the records it is given, and answers each write as it was told to.

    Args:
        answers: One answer for each write, in order: a `WriteResult`, or a function that takes the
            records and returns one (or raises). When they are used up, everything is delivered.
        name: The sink's name in configuration and counters.
        local: Whether delivery writes to it at once, without a spool.
        destination: What tells it apart from other sinks of the same name.
        max_batch_events: The most records that it wants in one write.
        max_batch_bytes: The most bytes that it wants in one write.
        lane: Chooses the lane of an event; by default, all events share one lane.
    """

    def __init__(
        self,
        *answers: Answer,
        name: str = "recording",
        local: bool = False,
        destination: str = "memory",
        max_batch_events: int = 5_000,
        max_batch_bytes: int = 1_000_000,
        lane: Callable[[Event], str] = lambda _event: "",
    ) -> None:
        self.name = name
        self.local = local
        self.destination = destination
        self.max_batch_events = max_batch_events
        self.max_batch_bytes = max_batch_bytes
        self.lane = lane
        self.answers = list(answers)
        self.writes: list[list[Record]] = []
        """The records of every write, delivered or not."""
        self.delivered: list[Record] = []
        self.flushes = 0
        self.closes = 0
        self.forks = 0
        self._lock = threading.Lock()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The delivered events, decoded from JSON."""
        return [msgspec.json.decode(record.body) for record in self.delivered]

    def encode(self, events: Sequence[Event]) -> Encoded:
        """Make one record with the JSON of each event; refuse what JSON cannot carry."""
        bodies, refused = encode_events(events)
        records = [
            Record(
                body=body,
                lane=self.lane(event),
                timestamp_ns=event.timestamp_ns,
                signal=event.signal,
            )
            for body, event in zip(bodies, events, strict=True)
        ]
        return Encoded.from_records(refused, Records.of(records))

    def write(self, records: Sequence[Record], timeout_seconds: float) -> WriteResult:
        """Keep the records and give the next answer."""
        del timeout_seconds
        with self._lock:
            self.writes.append(list(records))
            answer = self.answers.pop(0) if self.answers else None
        if callable(answer):  # outside the lock, so that an answer may wait for a test
            answer = answer(records)
        with self._lock:
            if answer is not None:
                result = answer
            elif self.closes:
                result = WriteResult(kept=records, error="the sink is closed", error_type="closed")
            else:
                result = WriteResult(delivered=records)
            self.delivered.extend(result.delivered)
        return result

    def flush(self, timeout_seconds: float) -> bool:
        """Count the call."""
        del timeout_seconds
        self.flushes += 1
        return True

    def close(self, timeout_seconds: float) -> None:
        """Count the call."""
        del timeout_seconds
        self.closes += 1

    def after_fork_in_child(self) -> None:
        """Count the call, and give the child its own lock."""
        self._lock = threading.Lock()
        self.forks += 1

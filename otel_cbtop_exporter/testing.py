"""Test doubles for whoever writes tests against this package: a sink and a clock.

Both are real implementations of public protocols, so a test needs no mocks.
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
    """A clock that moves only when somebody waits or a test says so; safe between threads.

    Args:
        start_seconds: What `monotonic` says first.
        start_ns: What `time_ns` says first.
    """

    def __init__(
        self, start_seconds: float = 1_000.0, start_ns: int = 1_700_000_000_000_000_000
    ) -> None:
        self._lock = threading.Lock()
        self._seconds = start_seconds
        self._ns = start_ns
        self.waits: list[float] = []
        """Every wait with an end, in order, in seconds."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return self._seconds

    def time_ns(self) -> int:
        """Return nanoseconds since the Unix epoch; `set_back` makes them smaller."""
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
        """Pass the time at once; without a timeout, really wait to be notified.

        Args:
            condition: Held by the caller.
            timeout_seconds: None waits without an end.
        """
        if timeout_seconds is None:
            condition.wait()
            return
        self.waits.append(timeout_seconds)
        self.advance(timeout_seconds)


class RecordingSink:
    """A sink that keeps what it is given and answers as it is told.

    Args:
        answers: One for each write, in order: a `WriteResult`, or a function of the records
            that returns one (or raises). When they are used up, everything is delivered.
        name: The sink's word in configuration and counters.
        local: Whether delivery writes to it at once, without a spool.
        destination: What tells it from another sink of that name.
        max_batch_events: The most records that it wants in one write.
        max_batch_bytes: The most bytes that it wants in one write.
        lane: Chooses the lane of an event; one lane by default.
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
        """What was delivered, decoded."""
        return [msgspec.json.decode(record.body) for record in self.delivered]

    def encode(self, events: Sequence[Event]) -> Encoded:
        """Make one record of each event, its JSON; what JSON cannot carry is refused."""
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
        """Count the call, with a lock of the child's own."""
        self._lock = threading.Lock()
        self.forks += 1

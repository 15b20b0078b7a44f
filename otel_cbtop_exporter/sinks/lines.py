"""What sinks of JSON lines share: encoding, taking turns between threads, and the answer.

Not here: where the lines go (`append_file.py` for files, `shared_stream.py` for the rest).
"""

from __future__ import annotations

import errno
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from otel_cbtop_exporter.encoding.event_json import encode_events, encode_joined
from otel_cbtop_exporter.event_batch import EventRun, Events
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.on_demand import Lines
from otel_cbtop_exporter.sinks.base import Block, Encoded, Record, Records, WriteResult
from otel_cbtop_exporter.turn import Turn

__all__ = ["Appended", "LineSink", "Target", "encode_lines"]


class Appended(msgspec.Struct, frozen=True):
    """How much of a batch was written.

    Attributes:
        lines: How many whole lines, counted from the front of the batch.
        error: Why the rest was not written; None if everything was.
    """

    lines: int
    error: OSError | None = None


class Target(Protocol):
    """Something that whole lines can be appended to; used by one thread at a time."""

    def append(self, payload: bytes, lines: int, deadline: float) -> Appended:
        """Append `lines` lines, each ended by a newline, before `deadline` (monotonic clock)."""
        ...

    def flush(self) -> None:
        """Push out what was appended; raises OSError."""
        ...

    def close(self, deadline: float) -> None:
        """Release everything; a later `append` opens the target again."""
        ...

    def after_fork_in_child(self) -> None:
        """Let go of the parent's descriptors without releasing the parent's lock."""
        ...


class LineSink(ABC):
    """A sink that appends lines to one target at a time.

    Safe to use from several threads. A subclass says where the lines go.
    """

    local = True
    max_batch_events = 10_000
    max_batch_bytes = 8 * 1024 * 1024

    def __init__(self) -> None:
        self._turn = Turn()
        self._closed = False
        self._target: Target | None = None

    def encode(self, events: Sequence[Event]) -> Encoded:
        """Make one record of each event: its JSON."""
        return encode_lines(events)

    def write(self, records: Sequence[Record], timeout_seconds: float) -> WriteResult:
        """Append the records; those that cannot be written are kept."""
        if not records:
            return WriteResult()
        deadline = time.monotonic() + timeout_seconds
        try:
            appended = self._turn.run(
                timeout_seconds,
                lambda: self._append(Records.of(records).text, len(records), deadline),
            )
        except TimeoutError as error:
            appended = Appended(0, error)
        return _write_result(records, appended, self._subject())

    def flush(self, timeout_seconds: float) -> bool:
        """Push out what was appended."""
        try:
            self._turn.run(timeout_seconds, self._flush)
        except OSError:  # includes TimeoutError
            return False
        return True

    def close(self, timeout_seconds: float) -> None:
        """Close the target within the timeout; records of a later write are kept."""
        deadline = time.monotonic() + timeout_seconds
        self._closed = True
        with suppress(TimeoutError):
            self._turn.run(timeout_seconds, lambda: self._release(deadline))

    def after_fork_in_child(self) -> None:
        """Start afresh, without the parent's descriptors, which share its locks."""
        self._turn = Turn()
        if self._target is not None:
            self._target.after_fork_in_child()

    @abstractmethod
    def _append(self, payload: bytes, lines: int, deadline: float) -> Appended:
        """Append `lines` lines before `deadline` (monotonic clock)."""

    @abstractmethod
    def _subject(self) -> str:
        """Name what cannot be written, for an error message."""

    def _flush(self) -> None:
        if self._target is not None:
            self._target.flush()

    def _release(self, deadline: float) -> None:
        target, self._target = self._target, None
        if target is not None:
            target.close(deadline)


def encode_lines(events: Sequence[Event]) -> Encoded:
    """Make one record of each event: its JSON."""
    blocks: list[Block] = []
    refused: dict[int, tuple[str, str]] = {}
    for part, place in Events.of(events).placed_parts():
        text = None if isinstance(part, EventRun) else encode_joined(part)
        bodies: Sequence[bytes]
        if text is not None:
            bodies = Lines(text, len(part))
        else:
            bodies, why = encode_events(Events([part]))
            refused.update((place.start + position, reason) for position, reason in why.items())
        blocks.append(Block("", part.signal, bodies, part.times_ns))
    return Encoded.from_records(refused, Records(blocks))


def _write_result(records: Sequence[Record], appended: Appended, subject: str) -> WriteResult:
    """Answer for a batch of which the first `appended.lines` lines were written.

    Args:
        records: The batch.
        appended: What became of it.
        subject: What could not be written, for the error message.
    """
    error = appended.error
    if error is None:
        return WriteResult(delivered=records)
    reason = error.strerror or str(error)
    return WriteResult(
        delivered=records[: appended.lines],
        kept=records[appended.lines :],
        error=f"{subject} cannot be written: {reason}",
        error_type=_error_type(error),
    )


def _error_type(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if type(error) is OSError and error.errno is not None:
        return errno.errorcode.get(error.errno, "OSError")
    return type(error).__name__

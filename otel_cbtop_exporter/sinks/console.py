"""The console: one event a line on standard output or standard error, for looking at."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from otel_cbtop_exporter.config import ConsoleConfig
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.sinks.base import Encoded, Record, Records, WriteResult
from otel_cbtop_exporter.sinks.lines import Appended, Turn, encode_lines, write_result
from otel_cbtop_exporter.sinks.shared_stream import SharedStream

__all__ = ["ConsoleSink"]


class ConsoleSink:
    """Writes events where the program prints, also where that is a notebook's cell.

    Safe to use from several threads.

    Args:
        options: Which stream.
    """

    name = "console"
    local = True
    max_batch_events = 10_000
    max_batch_bytes = 8 * 1024 * 1024

    def __init__(self, options: ConsoleConfig) -> None:
        self._stream = options.stream
        self.destination: str = options.stream
        self._turn = Turn()
        self._closed = False
        self._descriptor = -1
        self._target: SharedStream | None = None

    def encode(self, events: Sequence[Event]) -> Encoded:
        """Make one record of each event: its JSON."""
        return encode_lines(events)

    def write(self, records: Sequence[Record], timeout_seconds: float) -> WriteResult:
        """Print the records; what cannot be printed is kept."""
        if not records:
            return WriteResult()
        deadline = time.monotonic() + timeout_seconds
        try:
            with self._turn.taken(timeout_seconds):
                appended = self._append(Records.of(records).text, len(records), deadline)
        except TimeoutError as error:
            appended = Appended(0, error)
        return write_result(records, appended, f"console.stream {self._stream}")

    def flush(self, timeout_seconds: float) -> bool:
        """Nothing waits here; return True."""
        del timeout_seconds
        return True

    def close(self, timeout_seconds: float) -> None:
        """Print no more; the stream stays open."""
        deadline = time.monotonic() + timeout_seconds
        self._closed = True
        with suppress(TimeoutError), self._turn.taken(timeout_seconds):
            self._release(deadline)

    def after_fork_in_child(self) -> None:
        """Begin anew; the parent's descriptor shares its lock."""
        self._turn = Turn()
        if self._target is not None:
            self._target.after_fork_in_child()

    def _append(self, payload: bytes, lines: int, deadline: float) -> Appended:
        stream: TextIO | None = getattr(sys, self._stream)
        if self._closed or stream is None:
            return Appended(0, OSError(errno.EBADF, "it is closed"))
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._release(deadline)
            return _print(stream, payload, lines)
        if self._target is None or descriptor != self._descriptor:
            self._release(deadline)
            self._target, self._descriptor = SharedStream(descriptor), descriptor
        return self._target.append(payload, lines, deadline)

    def _release(self, deadline: float) -> None:
        target, self._target = self._target, None
        if target is not None:
            target.close(deadline)


def _print(stream: TextIO, payload: bytes, lines: int) -> Appended:
    """Write to a stream that is none of the operating system's: a notebook, a test's capture."""
    try:
        stream.write(payload.decode())
        stream.flush()
    except OSError as error:
        return Appended(0, error)
    except ValueError:
        return Appended(0, OSError(errno.EBADF, "it is closed"))
    return Appended(lines)

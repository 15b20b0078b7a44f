"""The console: one event a line on standard output or standard error, for people to read."""

from __future__ import annotations

import errno
import sys
from typing import TextIO

from otel_cbtop_exporter.config import ConsoleConfig
from otel_cbtop_exporter.sinks.lines import Appended, LineSink
from otel_cbtop_exporter.sinks.shared_stream import SharedStream

__all__ = ["ConsoleSink"]


class ConsoleSink(LineSink):
    """Writes events where the program prints, including to the cell of a notebook.

    Safe to use from several threads. Closing it leaves the stream open.

    Args:
        options: Which stream.
    """

    name = "console"

    def __init__(self, options: ConsoleConfig) -> None:
        super().__init__()
        self._stream = options.stream
        self.destination: str = options.stream
        self._descriptor = -1

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

    def _subject(self) -> str:
        return f"console.stream {self._stream}"


def _print(stream: TextIO, payload: bytes, lines: int) -> Appended:
    """Write to a stream without a descriptor, such as a notebook's or one that a test captures."""
    try:
        stream.write(payload.decode())
        stream.flush()
    except OSError as error:
        return Appended(0, error)
    except ValueError:
        return Appended(0, OSError(errno.EBADF, "it is closed"))
    return Appended(lines)

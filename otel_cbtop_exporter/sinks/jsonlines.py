"""JSON Lines: one event a line, appended to a file that rotates, or to standard output.

Any number of processes can write lines safely; `append_file.py` and `shared_stream.py` say
how. This module chooses between the two and puts the date into the path.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from otel_cbtop_exporter.config import JsonLinesConfig
from otel_cbtop_exporter.options import absolute_path
from otel_cbtop_exporter.own_log import HeldLog
from otel_cbtop_exporter.sinks.append_file import AppendFile
from otel_cbtop_exporter.sinks.base import Record, WriteResult
from otel_cbtop_exporter.sinks.lines import Appended, LineSink, Target
from otel_cbtop_exporter.sinks.rotation import RotatedFiles
from otel_cbtop_exporter.sinks.shared_stream import NotAStreamError, SharedStream

__all__ = ["JsonLinesSink"]

# These paths are links to open files of the process, and O_NOFOLLOW refuses links.
_OWN_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STANDARD = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}


class JsonLinesSink(LineSink):
    """Appends events to `jsonlines.path`.

    Safe to use from several threads, and from several processes with a sink each.

    Args:
        options: Path, rotation, `fsync` and mode.
        time_ns: The wall clock: `{date}`, `{hour}` and rotation by age.
        monotonic: The clock of `fsync=interval`.

    Raises:
        ConfigError: The path begins with a home folder that does not exist.
    """

    name = "jsonlines"

    def __init__(
        self,
        options: JsonLinesConfig,
        *,
        time_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._options = options
        self._time_ns = time_ns
        self._monotonic = monotonic
        path = options.path
        self._template = path if path in _STANDARD else absolute_path("jsonlines.path", path)
        self.destination = self._template
        self._path = ""
        self._rotated = RotatedFiles(options.max_files, options.compression)
        self._log = HeldLog(logging.getLogger("otel_cbtop_exporter.sinks.jsonlines"))

    def write(self, records: Sequence[Record], timeout_seconds: float) -> WriteResult:
        """Append the records; those that cannot be written are kept."""
        result = super().write(records, timeout_seconds)
        self._log.tell()
        return result

    def flush(self, timeout_seconds: float) -> bool:
        """Sync what `fsync=interval` has not synced yet."""
        flushed = super().flush(timeout_seconds)
        self._log.tell()
        return flushed

    def close(self, timeout_seconds: float) -> None:
        """Close the file and end the thread that compresses."""
        deadline = time.monotonic() + timeout_seconds
        super().close(timeout_seconds)
        self._log.tell()
        self._rotated.close(deadline - time.monotonic())

    def after_fork_in_child(self) -> None:
        """Start afresh, without the parent's descriptors, which share its locks."""
        super().after_fork_in_child()
        self._rotated.after_fork_in_child()

    def _append(self, payload: bytes, lines: int, deadline: float) -> Appended:
        if self._closed:
            return Appended(0, OSError(errno.EBADF, "the sink is closed"))
        try:
            path = self._path_now()
            if self._target is None or path != self._path:
                self._release(deadline)
                self._target = self._target_at(path)
                self._path = path
        except OSError as error:
            return Appended(0, error)
        except ValueError:  # no file system accepts such a path
            return Appended(0, OSError(errno.EINVAL, "it is not a path"))
        appended = self._target.append(payload, lines, deadline)
        gone = isinstance(appended.error, NotAStreamError | FileNotFoundError)
        if gone and isinstance(self._target, SharedStream):
            try:
                self._target = self._target_at(path)
            except OSError as error:
                return Appended(0, error)
            return self._target.append(payload, lines, deadline)
        return appended

    def _path_now(self) -> str:
        if "{" not in self._template:
            return self._template
        now = datetime.fromtimestamp(self._time_ns() // 1_000_000_000, tz=timezone.utc)
        return (
            self._template.replace("{pid}", str(os.getpid()))
            .replace("{date}", now.strftime("%Y-%m-%d"))
            .replace("{hour}", now.strftime("%H"))
        )

    def _target_at(self, path: str) -> Target:
        own = _OWN_DESCRIPTOR.fullmatch(path)
        if own or path in _STANDARD:
            target = int(own[1]) if own else _STANDARD[path]
            # Python started without this stream, so whatever the application opened first may
            # have this number.
            if path in _STANDARD and (sys.__stdout__, sys.__stderr__)[target - 1] is None:
                raise OSError(errno.EBADF, "it is closed")
            return SharedStream(target)
        with contextlib.suppress(FileNotFoundError):
            kind = os.lstat(path).st_mode
            if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
                return SharedStream(path)
        return AppendFile(
            path,
            self._options,
            self._rotated,
            self._log,
            time_ns=self._time_ns,
            monotonic=self._monotonic,
        )

    def _subject(self) -> str:
        return f"jsonlines.path (OTEL_EXPORTER_CBTOP_JSONLINES_PATH) {self._options.path!r}"

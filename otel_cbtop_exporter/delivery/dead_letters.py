"""Records that no sink will ever take, kept in a file with the reason, for people to look at.

Belongs here: the file, its form and its bounds. Not here: why a record was refused (`sinks/`),
and what is counted and logged of it (`outcomes.py`).
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from otel_cbtop_exporter.delivery.spool_checks import make_private_file, make_shared_folder
from otel_cbtop_exporter.file_lock import lock
from otel_cbtop_exporter.sinks.base import Rejection

__all__ = ["FILE_NAME", "DeadLetter", "DeadLetters"]

FILE_NAME = "dead-letters.jsonl"

_MAX_BYTES = 16 * 1024 * 1024

# A neighbour appends within milliseconds; one that was stopped in the middle never lets go, and
# blocking here would stop delivery, or the thread of the application that calls `export()`.
_LOCK_SECONDS = 0.5


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the file.

    Attributes:
        time_ns: When it was refused, nanoseconds since the Unix epoch.
        sink: Which sink refused it.
        reason: A short stable word, for example `invalid`.
        detail: The destination's own words; may quote the data.
        lane: The record's lane.
        timestamp_ns: The event's time.
        body: What would have been sent, where that is UTF-8.
        body_base64: What would have been sent, where it is not.
        key: The record's key, where it has one and that is UTF-8.
        key_base64: The record's key, where it is not.
        headers: The record's headers, where it has some; the values in base64.
    """

    time_ns: int
    sink: str
    reason: str
    detail: str = ""
    lane: str = ""
    timestamp_ns: int = 0
    body: str | None = None
    body_base64: str | None = None
    key: str | None = None
    key_base64: str | None = None
    headers: list[tuple[str, str]] = []


class DeadLetters:
    """The file of what one sink's destination has refused for good.

    Private (0600, never a link), of whole lines however many processes write it, and bounded:
    a file that would pass its limit becomes `<name>.1`, in place of the one before.

    Nothing is held open, so threads and forks may share one.

    Args:
        path: The file; its folder is made, 0700, if it is missing.
        max_bytes: Of one file; there are at most two.
    """

    def __init__(self, path: Path, *, max_bytes: int = _MAX_BYTES) -> None:
        self._path = path
        self._older = self._path.with_name(self._path.name + ".1")
        self._max_bytes = max_bytes

    def write(self, rejections: Sequence[Rejection], sink_name: str, now_ns: int) -> None:
        """Append rejected records.

        Args:
            rejections: In any order.
            sink_name: Who refused them.
            now_ns: Nanoseconds since the Unix epoch.

        Raises:
            OSError: None of them was written; the file is as it was. Also where another
                process holds its lock for half a second.
        """
        lines = [_encoder.encode(_letter(one, sink_name, now_ns)) + b"\n" for one in rejections]
        if not lines:
            return
        make_shared_folder(self._path.parent)
        descriptor = self._open_for(sum(map(len, lines)))
        try:
            _write_whole(descriptor, b"".join(lines))
        finally:
            os.close(descriptor)  # unlocks it

    def _open_for(self, size: int) -> int:
        """Open and lock the file, with room for so many bytes unless it is new."""
        flags = os.O_WRONLY | os.O_APPEND
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        while True:
            make_private_file(self._path)
            try:
                descriptor = os.open(self._path, flags)
            except FileNotFoundError:  # moved by another process just now
                continue
            try:
                lock(descriptor, time.monotonic() + _LOCK_SECONDS)
                opened = os.fstat(descriptor)
                if os.path.samestat(opened, self._path.lstat()):
                    if opened.st_size == 0 or opened.st_size + size <= self._max_bytes:
                        return descriptor
                    self._path.replace(self._older)
            except FileNotFoundError:  # moved before we had the lock
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


_encoder = msgspec.json.Encoder()


def _letter(rejection: Rejection, sink_name: str, now_ns: int) -> DeadLetter:
    record = rejection.record
    body, body_base64 = _text(record.body)
    key, key_base64 = (None, None) if record.key is None else _text(record.key)
    return DeadLetter(
        time_ns=now_ns,
        sink=sink_name,
        reason=rejection.reason,
        detail=rejection.detail.encode("utf-8", "replace").decode(),
        lane=record.lane,
        timestamp_ns=record.timestamp_ns,
        body=body,
        body_base64=body_base64,
        key=key,
        key_base64=key_base64,
        headers=[(name, base64.b64encode(value).decode()) for name, value in record.headers],
    )


def _text(data: bytes) -> tuple[str | None, str | None]:
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(data).decode()


def _write_whole(descriptor: int, data: bytes) -> None:
    before = os.fstat(descriptor).st_size
    written = os.write(descriptor, data)
    if written < len(data):
        # Half a line would make the next one unreadable too.
        os.ftruncate(descriptor, before)
        raise OSError("the disk took only a part of the dead letters")

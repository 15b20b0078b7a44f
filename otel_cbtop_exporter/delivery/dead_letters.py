"""Records that were refused for good, kept in a file with the reason, for people to inspect.

Belongs here: the file, its format and its limits. Not here: why a record was refused (`sinks/`),
and how that is counted and logged (`outcomes.py`).
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from otel_cbtop_exporter.delivery.spool_checks import make_private_file, make_shared_folder
from otel_cbtop_exporter.file_lock import lock, unlock
from otel_cbtop_exporter.sinks.base import Rejection

__all__ = ["FILE_NAME", "DeadLetter", "DeadLetters"]

FILE_NAME = "dead-letters.jsonl"

_MAX_BYTES = 16 * 1024 * 1024

# Another process appends within milliseconds. One that was stopped while appending never unlocks,
# and waiting for it would block delivery, or the application's thread that calls `export()`.
_LOCK_SECONDS = 0.5


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the file.

    Attributes:
        time_ns: When the record was refused, nanoseconds since the Unix epoch.
        sink: Which sink refused it.
        reason: A short stable word, for example `invalid`.
        detail: The destination's own words; may quote the data.
        lane: The record's lane.
        timestamp_ns: The event's time.
        body: What would have been sent, if it is UTF-8.
        body_base64: What would have been sent, if it is not UTF-8.
        key: The record's key, if it has one that is UTF-8.
        key_base64: The record's key, if it has one that is not UTF-8.
        headers: The record's headers, if it has any; their values in base64.
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
    """The file of records that one sink has refused for good.

    The file is private (0600, never a link), holds whole lines however many processes write to it,
    and is bounded: one that would exceed its limit is renamed to `<name>.1`, replacing the
    previous one.

    Nothing is held open, so threads and forked processes may share an instance.

    Args:
        path: The file; a missing folder is made, with mode 0700.
        max_bytes: Limit for one file; there are at most two.
    """

    def __init__(self, path: Path, *, max_bytes: int = _MAX_BYTES) -> None:
        self._path = path
        self._older = self._path.with_name(self._path.name + ".1")
        self._max_bytes = max_bytes

    def write(self, rejections: Sequence[Rejection], sink_name: str, now_ns: int) -> None:
        """Append rejected records.

        Args:
            rejections: In any order.
            sink_name: The sink that refused them.
            now_ns: Nanoseconds since the Unix epoch.

        Raises:
            OSError: None of them was written and the file is unchanged. Also raised when another
                process holds the lock for half a second.
        """
        lines = [_encoder.encode(_letter(one, sink_name, now_ns)) + b"\n" for one in rejections]
        if not lines:
            return
        make_shared_folder(self._path.parent)
        descriptor = self._open_for(sum(map(len, lines)))
        try:
            _write_whole(descriptor, b"".join(lines))
        finally:
            unlock(descriptor)  # closing does not if a child was forked meanwhile
            os.close(descriptor)

    def _open_for(self, size: int) -> int:
        """Open and lock a file that is empty or has room for `size` more bytes."""
        flags = os.O_WRONLY | os.O_APPEND
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        while True:
            make_private_file(self._path)
            try:
                descriptor = os.open(self._path, flags)
            except FileNotFoundError:  # another process has just moved it
                continue
            try:
                lock(descriptor, time.monotonic() + _LOCK_SECONDS)
                opened = os.fstat(descriptor)
                if os.path.samestat(opened, self._path.lstat()):
                    if opened.st_size == 0 or opened.st_size + size <= self._max_bytes:
                        return descriptor
                    self._path.replace(self._older)
            except FileNotFoundError:  # moved before we got the lock
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
        # Half a line would make the next line unreadable too.
        os.ftruncate(descriptor, before)
        raise OSError("the disk took only a part of the dead letters")

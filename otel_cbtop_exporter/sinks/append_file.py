"""A regular file to which many processes append whole lines, and which they rotate.

Every append follows the same protocol, which keeps lines whole and loses none (`O_APPEND`
alone loses lines at a rotation): take the `flock` of the open file; if the path no longer
names this file, because another process or logrotate moved it, open the path again; rotate
if that is due; start on a new line if a killed process left half a line; write the batch at
once; cut a short write back to its last whole line; unlock.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from otel_cbtop_exporter.config import JsonLinesConfig
from otel_cbtop_exporter.file_lock import LockedError, lock, unlock
from otel_cbtop_exporter.own_log import HeldLog
from otel_cbtop_exporter.sinks.lines import Appended
from otel_cbtop_exporter.sinks.rotation import RotatedFiles

__all__ = ["AppendFile"]

_WINDOWS = os.name == "nt"

# Reading is needed for the last byte. No platform has all of the flags below.
_FLAGS = os.O_RDWR | os.O_APPEND
for _name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK", "O_BINARY", "O_NOINHERIT"):
    _FLAGS |= getattr(os, _name, 0)


class AppendFile:
    """One path; used by one thread at a time.

    Args:
        path: The file's path, without placeholders.
        options: Rotation, `fsync` and the mode.
        rotated: Takes care of the files after this one has renamed them.
        log: Receives warnings about problems that lose no line.
        time_ns: The wall clock, for rotation by age.
        monotonic: The clock of `fsync=interval`.
    """

    def __init__(
        self,
        path: str,
        options: JsonLinesConfig,
        rotated: RotatedFiles,
        log: HeldLog,
        *,
        time_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._options = options
        self._rotated = rotated
        self._log = log
        self._time_ns = time_ns
        self._monotonic = monotonic
        self._mode = int(options.mode, 8)
        self._window_ns = options.max_age_ms * 1_000_000
        self._descriptor: int | None = None
        self._is_tidied = False
        self._warned: set[str] = set()
        self._rotated_in_window = -1
        self._unsynced = False
        self._synced_at = monotonic()

    def append(self, payload: bytes, lines: int, deadline: float) -> Appended:
        """Append lines; see `Target`."""
        try:
            descriptor, size = self._ready(len(payload), deadline)
            try:
                appended = self._write(descriptor, size, payload, lines)
            finally:
                unlock(descriptor)
            if appended.lines:
                self._unsynced = True
                self._sync_if_due()
        except OSError as error:
            if not isinstance(error, LockedError):
                self._close()
            return Appended(0, error)
        except BaseException:  # closing the descriptor also releases the lock
            self._close()
            raise
        return appended

    def flush(self) -> None:
        """Sync what `fsync=interval` has not synced yet."""
        if self._options.fsync != "never" and self._unsynced and self._descriptor is not None:
            self._sync(self._descriptor)

    def close(self, deadline: float) -> None:
        """Sync, unless `fsync` is `never`, and close."""
        del deadline
        try:
            self.flush()
        except OSError as error:
            self._warn("fsync", error)
        self._close()

    def after_fork_in_child(self) -> None:
        """Close the child's copy of the descriptor.

        If it stayed open, it would hold the parent's lock even after the parent was killed.
        """
        self._close()

    def _ready(self, incoming: int, deadline: float) -> tuple[int, int]:
        """Open the file, lock it and rotate it if due; return its descriptor and size."""
        may_rotate = True
        while True:
            descriptor = self._descriptor
            if descriptor is None:
                descriptor = self._descriptor = self._open()
            if not lock(descriptor, deadline) and not _WINDOWS:
                self._warn("flock", OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)))
            status = os.fstat(descriptor)
            if not self._is_current(status):
                self.flush()
                self._close()
                if time.monotonic() >= deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "it is being moved all the time")
                continue
            if not self._is_tidied:
                self._is_tidied = True
                self._rotated.tidy(self._path)  # finish what a killed process left undone
            if not may_rotate or not self._is_due(status, incoming):
                return descriptor, status.st_size
            may_rotate = self._rotate(descriptor)

    def _open(self) -> int:
        while True:
            try:
                descriptor = os.open(self._path, _FLAGS)
            except FileNotFoundError:
                descriptor = self._create()
                if descriptor < 0:
                    continue  # another process was faster
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise OSError(errno.ELOOP, "it is a symbolic link") from None
                raise
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a regular file any more")

    def _create(self) -> int:
        parent = Path(self._path).parent
        parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self._path, _FLAGS | os.O_CREAT | os.O_EXCL, self._mode)
        except FileExistsError:
            return -1
        if not _WINDOWS:
            # `open` applied the umask, but the configured mode is meant exactly.
            with contextlib.suppress(OSError):
                os.fchmod(descriptor, self._mode)
            if self._options.fsync != "never":
                try:
                    _sync_folder(parent)
                except OSError as error:  # some file systems cannot
                    self._warn("fsync of its folder", error)
        return descriptor

    def _is_current(self, status: os.stat_result) -> bool:
        if _WINDOWS:  # an open file can neither be moved nor deleted there
            return True
        try:
            return os.path.samestat(status, os.lstat(self._path))
        except FileNotFoundError:
            return False

    def _is_due(self, status: os.stat_result, incoming: int) -> bool:
        if not status.st_size:
            return False
        limit = self._options.max_bytes
        if limit and status.st_size + incoming > limit:
            return True
        if not self._window_ns:
            return False
        # Time is divided into windows since the epoch, and the file belongs to the window of its
        # last write: the one time that all processes and restarts agree on without a second file.
        window = self._time_ns() // self._window_ns
        if window > max(status.st_mtime_ns // self._window_ns, self._rotated_in_window):
            self._rotated_in_window = window
            return True
        return False

    def _rotate(self, descriptor: int) -> bool:
        """Rename the file, under its lock; return False if it cannot be renamed."""
        try:
            if self._options.fsync != "never":
                self._sync(descriptor)
            if _WINDOWS:
                self._close()
            Path(self._path).rename(self._rotated.free_name(self._path, self._time_ns()))
        except OSError as error:
            # A file that grows past its limit is better than lost lines.
            self._warn("rotation", error)
            return False
        self._close()
        self._rotated.tidy(self._path)
        return True

    def _write(self, descriptor: int, size: int, payload: bytes, lines: int) -> Appended:
        torn = size > 0 and not _ends_in_newline(descriptor, size)
        data = b"\n" + payload if torn else payload
        written = 0
        try:
            written = os.write(descriptor, data)
            while written < len(data):  # a short write: the next one raises the reason
                written += os.write(descriptor, memoryview(data)[written:])
        except OSError as error:
            whole = data.rfind(b"\n", 0, written) + 1
            # Only if the end is ours: never cut what others append without the lock.
            if os.fstat(descriptor).st_size == size + written:
                os.ftruncate(descriptor, size + whole)
            return Appended(max(data.count(b"\n", 0, whole) - torn, 0), error)
        return Appended(lines)

    def _sync_if_due(self) -> None:
        when = self._options.fsync
        if when == "never" or self._descriptor is None:
            return
        interval_seconds = self._options.fsync_interval_ms / 1_000
        if when == "batch" or self._monotonic() - self._synced_at >= interval_seconds:
            self._sync(self._descriptor)

    def _sync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self._unsynced = False
        self._synced_at = self._monotonic()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _warn(self, what: str, error: OSError) -> None:
        """Log a problem that loses no line, once."""
        if what not in self._warned:
            self._warned.add(what)
            template = "jsonlines.path %s: no %s: %s"
            self._log.log(logging.WARNING, template, self._path, what, error.strerror)


def _ends_in_newline(descriptor: int, size: int) -> bool:
    os.lseek(descriptor, size - 1, os.SEEK_SET)  # with O_APPEND, writes go to the end regardless
    return os.read(descriptor, 1) in (b"\n", b"")  # empty: another process just truncated it


def _sync_folder(path: Path) -> None:
    """Sync a folder, so that a new file's name in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

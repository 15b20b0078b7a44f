"""What happens to a file after its rotation: naming, compression, deletion.

A rotated file is named `PATH.20261124T000350.123456Z`, and when compressed
`PATH.20261124T000350.123456Z.gz` or `.zst`. Names sort by age. Compression is crash-safe: the
compressed file is written and synced under a name that ends in `.tmp`, then renamed, and only
then is the plain file deleted. Any process that finds a plain file beside its compressed one, or
a `.tmp` that nobody holds, finishes the work.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
import threading
import time
import zlib
from collections import defaultdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal, Protocol

from otel_cbtop_exporter.file_lock import lock
from otel_cbtop_exporter.fork_lock import forks_wait

__all__ = ["RotatedFiles"]

_log = logging.getLogger("otel_cbtop_exporter.sinks.jsonlines")

_WINDOWS = os.name == "nt"
_TIME = "%Y%m%dT%H%M%S.%fZ"
_LAST_YEAR = 9_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SUFFIX = {"gzip": ".gz", "zstd": ".zst"}
_CHUNK_BYTES = 256 * 1024

# How long a process that ends waits for an ongoing compression to finish.
_PATIENCE_SECONDS = 1.0


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class RotatedFiles:
    """The rotated files of one sink; thread-safe.

    Args:
        max_files: How many of the newest files stay; older ones are deleted.
        compression: How the files that stay are compressed.
    """

    def __init__(self, max_files: int, compression: Literal["none", "gzip", "zstd"]) -> None:
        self._max_files = max_files
        self._compression = compression
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._running = False
        self._due: set[str] = set()
        self._stopping = threading.Event()
        self._descriptors: set[int] = set()

    def free_name(self, path: str, now_ns: int) -> str:
        """Return an unused name for the file at `path`, one that sorts last.

        The caller holds the file's lock, so nobody else is choosing a name.
        """
        moment = _EPOCH + timedelta(microseconds=now_ns // 1_000)
        stamps = _listing(path)
        if stamps:  # a clock that was set back must not reverse the order
            newest = datetime.strptime(max(stamps), _TIME).replace(tzinfo=timezone.utc)
            moment = max(moment, newest + timedelta(microseconds=1))
        return f"{path}.{moment.strftime(_TIME)}"

    def tidy(self, path: str) -> None:
        """Compress and delete rotated files of `path` as due, on a thread that ends by itself."""
        try:
            if not self._has_work(_listing(path)):
                return
        except OSError:  # the folder cannot be listed: nothing was rotated there
            return
        with self._lock:
            if self._stopping.is_set():
                return
            self._due.add(path)
            # It may have died of an exception that nobody expects.
            if self._running and self._thread is not None and self._thread.is_alive():
                return
            # A daemon, because the interpreter must not wait for it: whoever opens the file next
            # starts unfinished work again.
            thread = threading.Thread(target=self._run, name="cbtop-rotation", daemon=True)
            # RuntimeError: the interpreter is shutting down and starts no more threads
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread, self._running = thread, True

    def close(self, timeout_seconds: float) -> None:
        """End the thread; the next process that opens the file does what is not done soon."""
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(min(max(0.0, timeout_seconds / 2), _PATIENCE_SECONDS))
        self._stopping.set()
        if thread is not None:
            thread.join(max(0.0, deadline - time.monotonic()))

    def after_fork_in_child(self) -> None:
        """Start without a thread; the parent's thread continues in the parent.

        Close the child's copies of that thread's descriptors: they would keep the space of a
        deleted file in use, and the lock of a killed parent held.
        """
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._begin()

    def _has_work(self, stamps: dict[str, set[str]]) -> bool:
        if len(stamps) > self._max_files:
            return True
        return any(
            (self._compression != "none" and "" in suffixes)
            or any(suffix.endswith(".tmp") for suffix in suffixes)
            for suffixes in stamps.values()
        )

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._due or self._stopping.is_set():
                    self._running = False
                    return
                path = self._due.pop()
            try:
                self._tidy_now(path)
            except OSError as error:
                _log.warning("rotated files of %s cannot be tidied: %s", path, error.strerror)

    def _tidy_now(self, path: str) -> None:
        stamps = _listing(path)
        newest_first = sorted(stamps, reverse=True)
        for stamp in newest_first[self._max_files :]:
            for suffix in stamps[stamp]:
                self._delete_or_say(f"{path}.{stamp}{suffix}")
        # Oldest first, so that the next file to be deleted is the first to shrink.
        for stamp in reversed(newest_first[: self._max_files]):
            if self._stopping.is_set() or path in self._due:  # rotated again: deleting comes first
                return
            if self._compression != "none" and "" in stamps[stamp]:
                try:
                    self._compress(f"{path}.{stamp}", _SUFFIX[self._compression])
                except OSError as error:  # a link, a folder: go on with the others
                    name = f"{path}.{stamp}"
                    _log.warning("%s cannot be compressed: %s", name, error.strerror)
            else:
                for suffix in stamps[stamp]:
                    if suffix.endswith(".tmp"):
                        self._delete_or_say(f"{path}.{stamp}{suffix}")

    def _delete_or_say(self, name: str) -> None:
        try:
            _delete(name)
        except OSError as error:  # a folder, or another user's file: go on with the others
            _log.warning("%s cannot be deleted: %s", name, error.strerror)

    def _compress(self, plain: str, suffix: str) -> None:
        finished, unfinished = plain + suffix, f"{plain}{suffix}.tmp"
        try:
            source = self._open(plain, os.O_RDONLY)
        except FileNotFoundError:
            return  # another process has compressed or deleted it
        target = -1
        try:
            target = self._open(unfinished, os.O_RDWR | os.O_CREAT)
            # Whoever holds the lock of the unfinished file does the work. The plain file's lock is
            # not used: writers may still wait for that one, to find out that the file has moved.
            alone = lock(target, time.monotonic()) or _WINDOWS
            if not _is_at(target, unfinished) or not _is_at(source, plain):
                return
            # The finished file exists if a process was killed before it deleted the plain one.
            done = Path(finished).exists()
            copied = not done and alone and self._copy(source, target)
            if _WINDOWS:  # open files can neither be renamed nor deleted there
                self._close(source)
                self._close(target)
            if copied:
                Path(unfinished).replace(finished)
            else:
                _delete(unfinished)
            if copied or done:
                _delete(plain)
        except (TimeoutError, FileNotFoundError):
            return  # another process works on it, or has deleted it because newer ones came
        except OSError:
            _delete(unfinished)
            raise
        finally:
            self._close(source)
            self._close(target)

    def _copy(self, source: int, target: int) -> bool:
        """Compress one file into another and sync it; return False if told to stop."""
        compressor = _compressor(self._compression)
        os.ftruncate(target, 0)
        if hasattr(os, "fchmod"):
            os.fchmod(target, os.fstat(source).st_mode & 0o777)
        while chunk := os.read(source, _CHUNK_BYTES):
            if self._stopping.is_set():
                return False
            _write_all(target, compressor.compress(chunk))
        _write_all(target, compressor.flush())
        os.fsync(target)
        return True

    def _open(self, path: str, flags: int) -> int:
        for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK", "O_BINARY"):
            flags |= getattr(os, name, 0)
        descriptor = os.open(path, flags, 0o600)
        self._descriptors.add(descriptor)
        return descriptor

    def _close(self, descriptor: int) -> None:
        if descriptor in self._descriptors:
            self._descriptors.discard(descriptor)
            os.close(descriptor)


def _listing(path: str) -> dict[str, set[str]]:
    """Return the rotated files of a path, as the suffixes that exist for each time."""
    folder, name = os.path.split(path)
    pattern = re.compile(
        re.escape(name) + r"\.(\d{8}T\d{6}\.\d{6}Z)(|\.gz|\.zst|\.gz\.tmp|\.zst\.tmp)"
    )
    stamps: defaultdict[str, set[str]] = defaultdict(set)
    with os.scandir(folder or ".") as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match and _is_time(match[1]):
                stamps[match[1]].add(match[2])
    return stamps


def _is_time(stamp: str) -> bool:
    """Whether a stamp is a time that a later one can follow; if not, the file is not ours."""
    try:
        return datetime.strptime(stamp, _TIME).year < _LAST_YEAR  # noqa: DTZ007  all are UTC
    except ValueError:
        return False


def _compressor(compression: str) -> _Compressor:
    if compression == "gzip":
        return zlib.compressobj(wbits=31)
    with forks_wait():
        if sys.version_info >= (3, 14):
            from compression.zstd import ZstdCompressor  # noqa: PLC0415  where it was asked for
        else:
            from backports.zstd import ZstdCompressor  # noqa: PLC0415  where it was asked for
    compressor: _Compressor = ZstdCompressor()
    return compressor


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.write(descriptor, view)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = view[written:]


def _is_at(descriptor: int, path: str) -> bool:
    if _WINDOWS:
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _delete(path: str) -> None:
    Path(path).unlink(missing_ok=True)

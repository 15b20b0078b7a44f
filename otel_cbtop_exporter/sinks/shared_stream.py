"""Standard output, a pipe, a terminal, a FIFO or a socket, to which whole lines are written.

None of them can be rotated or cut back, and several processes may write to the same one. A
pipe takes what fits, so a batch is written in parts. A part holds whole lines if they are no
longer than `PIPE_BUF`, up to which a pipe takes all or nothing. Writing happens under a lock: a
`flock` on a descriptor of our own (`/proc/self/fd/N` opened again, which also makes ours
non-blocking without changing the application's) or, where that cannot be opened (a socket,
another user's pipe), a POSIX lock. Where neither exists (macOS has no locks on pipes), each
process still writes whole lines, but lines of two processes can mix if longer than `PIPE_BUF`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import sys
import time

from otel_cbtop_exporter.file_lock import lock, unlock
from otel_cbtop_exporter.sinks.lines import Appended

__all__ = ["NotAStreamError", "SharedStream"]

# How much a blocking descriptor takes without blocking once poll says that it is writable.
_PIPE_BUF = getattr(select, "PIPE_BUF", 512)

# Opening a path here makes a new open file; /dev/fd may only make a dup, which shares the lock.
_OWN_DESCRIPTORS = "/proc/self/fd"
_WHOLE = (b"", 0)


# After a wait for a reader has timed out, further waits are only this long until it reads again.
# Closing waits at most `_CLOSE_SECONDS` for it.
_STALLED_SECONDS = 0.1
_CLOSE_SECONDS = 1.0


class NotAStreamError(OSError):
    """The path of a FIFO or device names something else now."""


class SharedStream:
    """One stream; used by one thread at a time.

    If nobody reads, a line may be only partly written at the deadline. The lock is then kept, so
    that no other line can get into this one, and the next `append` continues where this one
    ended. The line counts as written only when all of it is.

    Args:
        target: A descriptor, which remains the application's and is never closed here, or the
            path of a FIFO or device.
    """

    _status: os.stat_result | None  # of the open target; None if it is not open
    _descriptor: int  # the one to write to
    _locked: int  # the one to lock while writing
    _owned: set[int]  # those opened here
    _by_process: bool  # whether the lock is a POSIX lock, which belongs to the process
    _torn: tuple[bytes, int]  # a partly written line, and how many of its bytes are written
    _stalled: bool  # whether the last wait for a reader timed out

    def __init__(self, target: int | str) -> None:
        self._target = target
        self._forget()

    def append(self, payload: bytes, lines: int, deadline: float) -> Appended:
        """Append lines; see `Target`."""
        try:
            if self._status is None or not os.path.samestat(self._status, self._current()):
                self._close()
                self._open()
            if not self._torn[1]:
                lock(self._locked, deadline, by_process=self._by_process)
        except OSError as error:
            if not isinstance(error, TimeoutError):
                self._close()
            return Appended(0, error)
        try:
            appended = self._write(payload, lines, deadline)
            broken = isinstance(appended.error, BrokenPipeError)
            if broken:
                self._torn = _WHOLE  # a new reader gets whole lines from the start
        finally:
            if not self._torn[1]:
                unlock(self._locked, by_process=self._by_process)
        if broken:
            self._close()
        return appended

    def flush(self) -> None:
        """Do nothing: this process buffers nothing."""

    def close(self, deadline: float) -> None:
        """Finish a partly written line if there is time, and close our own descriptors."""
        if self._torn[1]:
            self._write(b"", 0, min(deadline, time.monotonic() + _CLOSE_SECONDS))
        self._close()

    def after_fork_in_child(self) -> None:
        """Close the child's copies, which share the parent's lock."""
        self._close(may_unlock=False)

    def _forget(self) -> None:
        self._torn = _WHOLE
        self._status = None
        self._descriptor = self._locked = -1
        self._owned = set()
        self._by_process = False
        self._stalled = False

    def _current(self) -> os.stat_result:
        if isinstance(self._target, int):
            return os.fstat(self._target)
        return os.lstat(self._target)

    def _open(self) -> None:
        flags = os.O_WRONLY
        for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"):
            flags |= getattr(os, name, 0)
        if isinstance(self._target, str):
            flags |= getattr(os, "O_NOFOLLOW", 0)
            try:
                self._descriptor = self._locked = os.open(self._target, flags)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    raise OSError(errno.ENXIO, "no process reads it") from None
                raise
            self._owned.add(self._descriptor)
            kind = os.fstat(self._descriptor).st_mode
            if not (stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
                self._close()
                raise NotAStreamError(errno.EINVAL, "it is no longer a FIFO")
        else:
            self._descriptor = self._locked = self._target
            self._by_process = True
            with contextlib.suppress(OSError):
                is_file = stat.S_ISREG(os.fstat(self._target).st_mode)
                mine = flags & ~os.O_WRONLY | os.O_RDWR if is_file else flags  # to read its end
                self._locked = os.open(f"{_OWN_DESCRIPTORS}/{self._target}", mine)
                self._owned.add(self._locked)
                self._by_process = False
            # Not for a file: its offset belongs to the descriptor that the program prints to.
            if not self._by_process and not stat.S_ISREG(os.fstat(self._target).st_mode):
                self._descriptor = self._locked
        self._status = self._current()

    def _write(self, payload: bytes, lines: int, deadline: float) -> Appended:
        line, written = self._torn
        # Either the kept batch comes again, or another comes and the rest of the line goes first.
        first = 0 if payload.startswith(line) else 1
        data = line + payload if first else payload
        if not written and self._ends_torn():
            data, first = b"\n" + data, first + 1
        view = memoryview(data)
        waits = hasattr(select, "poll") and not stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        try:
            if not written:
                if waits:
                    self._wait(deadline)
                _flush_prints(self._target)
            while written < len(data):
                if waits:
                    self._wait(deadline)
                with contextlib.suppress(BlockingIOError):
                    end = _whole_lines(data, written) if waits else len(data)
                    written += os.write(self._descriptor, view[written:end])
        # What a signal handler raises, too, may leave half a line; it is raised again below.
        except BaseException as error:  # noqa: BLE001
            failed = error
        else:
            self._torn = _WHOLE
            return Appended(lines)
        whole = data.rfind(b"\n", 0, written) + 1
        out_in_part = written - whole
        self._torn = _WHOLE
        if out_in_part:
            self._torn = (data[whole : data.index(b"\n", whole) + 1], out_in_part)
        if not isinstance(failed, OSError):
            raise failed
        return Appended(max(data.count(b"\n", 0, whole) - first, 0), failed)

    def _ends_torn(self) -> bool:
        """Whether a killed process left half a line at the end of the file."""
        if self._locked == self._descriptor:
            return False
        size = os.fstat(self._locked).st_size
        return size > 0 and os.pread(self._locked, 1, size - 1) != b"\n"

    def _wait(self, deadline: float) -> None:
        """Wait for a slow reader, until something can be written."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        seconds = max(0.0, deadline - time.monotonic())
        seconds = min(seconds, _STALLED_SECONDS) if self._stalled else seconds
        self._stalled = not poll.poll(seconds * 1_000)
        if self._stalled:
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads it")

    def _close(self, *, may_unlock: bool = True) -> None:
        if may_unlock and self._torn[1] and self._by_process:
            unlock(self._locked, by_process=True)
        for descriptor in self._owned:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._forget()


def _whole_lines(data: bytes, start: int) -> int:
    """Return an end up to which a pipe takes all or nothing, at the end of a line if one fits."""
    return data.rfind(b"\n", start, start + _PIPE_BUF) + 1 or start + _PIPE_BUF


def _flush_prints(target: int | str) -> None:
    """Flush what the program has printed, so that our lines never land inside one of its.

    Text printed to a pipe waits in Python's buffer until that is full, usually in mid-line.
    """
    for stream in (sys.stdout, sys.stderr):
        # Python raises these for a stream that is closed, replaced, or in use at the moment.
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            if stream.fileno() == target:
                stream.flush()

"""What sinks of JSON lines share: encoding, the lock between processes, and the answer.

Not here: where the lines go (`append_file.py` for files, `shared_stream.py` for the rest).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from otel_cbtop_exporter.encoding.event_json import encode_events, encode_joined
from otel_cbtop_exporter.event_batch import EventRun, Events
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.on_demand import Lines
from otel_cbtop_exporter.sinks.base import Block, Encoded, Record, Records, WriteResult

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # every use asks for None first

__all__ = ["Appended", "Target", "encode_lines", "lock", "unlock", "write_result"]

# What a file system answers that has no locks at all, such as some FUSE and network ones, and
# macOS for a pipe (EBADF; a descriptor that is really bad fails at the next call).
_NO_LOCKS = {
    errno.ENOLCK,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EBADF,
}

_SHORTEST_WAIT_SECONDS = 0.0005
_LONGEST_WAIT_SECONDS = 0.01


class Appended(msgspec.Struct, frozen=True):
    """How much of a batch is out.

    Attributes:
        lines: Whole lines, counted from the front of the batch.
        error: Why the rest is not; None if everything is out.
    """

    lines: int
    error: OSError | None = None


class Target(Protocol):
    """Something that whole lines can be appended to; used by one thread at a time."""

    def append(self, payload: bytes, lines: int, deadline: float) -> Appended:
        """Append so many lines, each ended by a newline, before `deadline` (monotonic clock)."""
        ...

    def flush(self) -> None:
        """Push out what was appended; raises OSError."""
        ...

    def close(self, deadline: float) -> None:
        """Release everything; an `append` after it opens again."""
        ...

    def after_fork_in_child(self) -> None:
        """Let go of the parent's descriptors without touching the parent's lock."""
        ...


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
    return Encoded.without(refused, Records(blocks))


def write_result(records: Sequence[Record], appended: Appended, subject: str) -> WriteResult:
    """Answer for a batch, of which the first `appended.lines` lines are out.

    Args:
        records: The batch.
        appended: What became of it.
        subject: What could not be written, for the error's text.
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


def lock(descriptor: int, deadline: float, *, by_process: bool = False) -> bool:
    """Lock a file against other processes.

    Args:
        descriptor: Opened by this process alone, unless `by_process`.
        deadline: On the monotonic clock.
        by_process: Use a POSIX lock, which belongs to the process and not to the open file,
            so that it also tells processes apart that inherited one descriptor.

    Returns:
        Whether there is a lock; False where the platform or the file system has none.

    Raises:
        TimeoutError: Another process held it until the deadline.
        OSError: The descriptor is not usable.
    """
    if fcntl is None:
        return False
    take = fcntl.lockf if by_process else fcntl.flock
    wait_seconds = _SHORTEST_WAIT_SECONDS
    while True:
        try:
            take(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # noqa: PERF203  as good as never the first time
            # Asked again and again, because a blocking flock has no timeout: a neighbour that
            # was stopped while it held the lock would stop this process for good.
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock") from None
            time.sleep(min(wait_seconds, remaining))
            wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
        else:
            return True


def unlock(descriptor: int, *, by_process: bool = False) -> None:
    """Let the next process write; harmless where there was no lock.

    Closing would do as well, if no forked child held a copy of the descriptor.
    """
    if fcntl is None:
        return
    try:
        (fcntl.lockf if by_process else fcntl.flock)(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise

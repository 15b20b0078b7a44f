"""The lock between processes that append to one file."""

from __future__ import annotations

import errno
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # every use asks for None first

__all__ = ["LockedError", "lock", "unlock"]

# Errors of file systems that have no locks at all, such as some FUSE and network ones, and of
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


class LockedError(TimeoutError):
    """Another process held a lock for all of the time; nothing was done."""


def lock(descriptor: int, deadline: float, *, by_process: bool = False) -> bool:
    """Lock a file against other processes.

    Args:
        descriptor: Opened by this process itself and not inherited, unless `by_process`.
        deadline: When to give up, on the monotonic clock.
        by_process: Use a POSIX lock, which belongs to the process and not to the open file, so
            that it also excludes processes that have inherited the same descriptor.

    Returns:
        Whether the file is locked; False if the platform or the file system has no locks.

    Raises:
        LockedError: Another process held the lock until the deadline.
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
            # Poll, because a blocking flock has no timeout: a process that was stopped while it
            # held the lock would block this one for good.
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise LockedError(errno.ETIMEDOUT, "another process holds its lock") from None
            time.sleep(min(wait_seconds, remaining))
            wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
        else:
            return True


def unlock(descriptor: int, *, by_process: bool = False) -> None:
    """Unlock a file, so that the next process can write; harmless if it was not locked.

    Closing the descriptor would do as well, but only if no forked child held a copy of it.
    """
    if fcntl is None:
        return
    try:
        (fcntl.lockf if by_process else fcntl.flock)(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise

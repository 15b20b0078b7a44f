"""Locks of the process that a fork waits for, so that no child inherits one held."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

__all__ = ["PIPELINES", "SPOOLS", "forks_wait"]


def _nothing() -> None:
    pass


class ForkLock:
    """Holds a reentrant lock that a fork takes first, and that is a new one in the child.

    Use it as `with fork_lock.lock:`. Entering is C's then: in a context manager of Python's a
    signal handler could raise after the lock was taken and before the block had begun, and nobody
    would ever release it.

    Attributes:
        lock: The lock itself; never kept by anybody, because a fork replaces it.
        before: Called before a fork, with the lock held; set by the module that uses the lock.
        in_child: Called in the child, with the new lock; likewise.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.before: Callable[[], None] = _nothing
        self.in_child: Callable[[], None] = _nothing


PIPELINES, IMPORTS, SPOOLS = ForkLock(), ForkLock(), ForkLock()

# The order in which a fork takes them, and whoever takes one while having another. In the child
# their hooks are called in the opposite order.
_locks = (PIPELINES, IMPORTS, SPOOLS)
_held: list[ForkLock] = []  # by the fork that is under way


def _before_fork() -> None:
    raised: BaseException | None = None
    taken: list[ForkLock] = []
    for one in _locks:
        # Python forks whatever is raised here, so every lock is taken.
        while one not in taken:
            raised = _take(one, taken) or raised
    _held[:] = taken  # now nobody else is in a fork
    if raised is not None:
        raise raised


def _take(one: ForkLock, taken: list[ForkLock]) -> BaseException | None:
    """Take a lock and call its hook; returns what that, or a signal handler meanwhile, raised."""
    try:
        one.lock.acquire()
        taken.append(one)
        one.before()
    # Python forks all the same, and what is not taken would be released, or held for ever. The
    # caller raises it once all locks are taken, so that Python reports it.
    except BaseException as error:  # noqa: BLE001
        return error
    return None


def _after_fork_in_parent() -> None:
    for one in reversed(_held[:]):
        one.lock.release()


def _after_fork_in_child() -> None:
    # New locks, no release: a server that forks in C (uWSGI) runs this hook alone, and an old
    # lock may then be held by a thread that the child does not have.
    for one in _locks:
        one.lock = threading.RLock()
    with ExitStack() as hooks:  # all of them, whatever one raises, the last one first
        for one in _locks:
            hooks.callback(one.in_child)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def forks_wait() -> AbstractContextManager[bool]:
    """Have forks wait for what is done inside: imports, and a client library's first steps.

    Python locks a module while it is being imported. A child that was forked then has the lock
    and not the thread that would give it back, so it could never import the library: it would
    wait for ever with its first batch. Never for what waits for the outside, or logs.
    """
    return IMPORTS.lock

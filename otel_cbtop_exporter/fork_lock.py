"""Process-wide locks that a fork waits for, so that no child inherits one that is held."""

from __future__ import annotations

# Both before the hooks below are registered: a fork acquires their locks, too, and has to do that
# after ours, because whoever holds ours may import a module that asks for a logger or a thread.
import concurrent.futures.thread  # noqa: F401 -- for its hook
import logging  # noqa: F401 -- for its hook
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

__all__ = ["PIPELINES", "SPOOLS", "forks_wait"]


def _nothing() -> None:
    pass


class ForkLock:
    """Holds a reentrant lock that a fork acquires first, and that is replaced in the child.

    Use it as `with fork_lock.lock:`, which enters the lock in C. In a context manager written in
    Python a signal handler could raise after the lock was acquired and before the block began, and
    nobody would ever release it.

    Attributes:
        lock: The lock itself. Never keep a reference to it, because a fork replaces it.
        before: Called before a fork, with the lock held; set by the module that uses the lock.
        in_child: Called in the child, once its locks are new; set likewise.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.before: Callable[[], None] = _nothing
        self.in_child: Callable[[], None] = _nothing


PIPELINES, IMPORTS, SPOOLS = ForkLock(), ForkLock(), ForkLock()

# The order in which a fork acquires them, and any code that holds several at once. In the child
# their hooks are called in reverse order.
_locks = (PIPELINES, IMPORTS, SPOOLS)
_held: list[ForkLock] = []  # what the fork under way holds


def _before_fork() -> None:
    raised: BaseException | None = None
    taken: list[ForkLock] = []
    for one in _locks:
        # Python forks even if this hook raises, so acquire every lock in any case.
        while one not in taken:
            raised = _take(one, taken) or raised
    _held[:] = taken  # with all locks held, no other thread is in a fork
    if raised is not None:
        raise raised


def _take(one: ForkLock, taken: list[ForkLock]) -> BaseException | None:
    """Acquire a lock and call its hook; returns what the hook or a signal handler raised."""
    try:
        one.lock.acquire()
        taken.append(one)
        one.before()
    # Python forks even if the hook raises; the parent would then release locks that it has not
    # acquired, or hold others for ever. So the caller raises only once all locks are acquired, and
    # Python reports the error then.
    except BaseException as error:  # noqa: BLE001
        return error
    return None


def _after_fork_in_parent() -> None:
    for one in reversed(_held[:]):
        one.lock.release()


def _after_fork_in_child() -> None:
    # Replace the locks instead of releasing them: a server that forks in C (uWSGI) runs only this
    # hook, and then a thread that the child does not have may hold an old lock.
    for one in _locks:
        one.lock = threading.RLock()
    with ExitStack() as hooks:  # runs all of them, even if one raises, the last one first
        for one in _locks:
            hooks.callback(one.in_child)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def forks_wait() -> AbstractContextManager[bool]:
    """Make forks wait while the block runs: for imports, and for starting a client library.

    Python locks a module while it is being imported. A child forked meanwhile has the lock but not
    the thread that would release it, so it could never import the library: it would wait for ever
    with its first batch. Never use this around code that waits for the outside, or logs.
    """
    return IMPORTS.lock

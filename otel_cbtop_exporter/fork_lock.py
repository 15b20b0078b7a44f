"""Locks of the process that a fork waits for, so that no child inherits one held."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

__all__ = ["ForkLock", "forks_wait"]


def _nothing() -> None:
    pass


class ForkLock:
    """Holds a reentrant lock that a fork takes first, and that is a new one in the child.

    Use it as `with fork_lock.lock:`. Entering is C's then: in a context manager of Python's a
    signal handler could raise after the lock was taken and before the block had begun, and nobody
    would ever release it.

    Of several, a fork takes the one that was made last first: Python runs what is registered
    before a fork in the opposite order.

    Args:
        before: Called before a fork, with the lock held.
        in_child: Called in the child, with the new lock.

    Attributes:
        lock: The lock itself; never kept by anybody, because a fork replaces it.
    """

    def __init__(
        self, *, before: Callable[[], None] = _nothing, in_child: Callable[[], None] = _nothing
    ) -> None:
        self.lock = threading.RLock()
        self._do_before = before
        self._do_in_child = in_child
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=self._after_fork_in_parent,
                after_in_child=self._after_fork_in_child,
            )

    def _before_fork(self) -> None:
        self.lock.acquire()
        self._do_before()

    def _after_fork_in_parent(self) -> None:
        self.lock.release()

    def _after_fork_in_child(self) -> None:
        # A new lock, not a release: a server that forks in C (uWSGI) runs this hook alone, and
        # the old lock may then be held by a thread that the child does not have.
        self.lock = threading.RLock()
        self._do_in_child()


_imports = ForkLock()


def forks_wait() -> AbstractContextManager[bool]:
    """Have forks wait for what is done inside: imports, and a client library's first steps.

    Python locks a module while it is being imported. A child that was forked then has the lock
    and not the thread that would give it back, so it could never import the library: it would
    wait for ever with its first batch. Never for what waits for the outside, or logs.
    """
    return _imports.lock

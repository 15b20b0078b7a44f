"""A lock of the process that a fork waits for, so that no child inherits it held."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

__all__ = ["ForkLock"]


def _nothing() -> None:
    pass


class ForkLock:
    """A reentrant lock that a fork takes first, and that is a new one in the child.

    Of several, a fork takes the one that was made last first: Python runs what is registered
    before a fork in the opposite order.

    Args:
        before: Called before a fork, with the lock held.
        in_child: Called in the child, with the new lock.
    """

    def __init__(
        self, *, before: Callable[[], None] = _nothing, in_child: Callable[[], None] = _nothing
    ) -> None:
        self._lock = threading.RLock()
        self._do_before = before
        self._do_in_child = in_child
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=self._after_fork_in_parent,
                after_in_child=self._after_fork_in_child,
            )

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _before_fork(self) -> None:
        self._lock.acquire()
        self._do_before()

    def _after_fork_in_parent(self) -> None:
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        # A new lock, not a release: a server that forks in C (uWSGI) runs this hook alone, and
        # the old lock may then be held by a thread that the child does not have.
        self._lock = threading.RLock()
        self._do_in_child()

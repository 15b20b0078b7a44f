"""The one lock around every SQLite call of this process, and what a fork does to spools.

SQLite has mutexes of its own. A fork while another thread holds one leaves it locked in the
child for ever, and a child that inherits an open connection can delete the parent's WAL by
closing the file. So nothing of ours touches SQLite without this lock, whole transactions
included, and a fork waits for the lock and closes every file first.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from typing import Protocol

from otel_cbtop_exporter.fork_lock import SPOOLS

__all__ = ["ForkAware", "spool_lock", "watch_forks"]


class ForkAware(Protocol):
    """What has to be told of a fork; both are called with the spool lock held."""

    def before_fork(self) -> None:
        """Close what must not be inherited open; the parent opens it again when it needs it."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget, without touching it, what belongs to the parent."""
        ...


_watched: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def spool_lock() -> AbstractContextManager[bool]:
    """Return the lock; for work on SQLite and on what describes it, never for a log or callback."""
    return SPOOLS.lock


def watch_forks(thing: ForkAware) -> None:
    """Tell a thing of forks for as long as it lives."""
    with spool_lock():
        _watched.add(thing)


def _before_fork() -> None:
    for thing in list(_watched):
        thing.before_fork()


def _in_child() -> None:
    for thing in list(_watched):
        thing.after_fork_in_child()


# The lock is reentrant: a signal handler may end a span on a thread inside a transaction.
SPOOLS.before, SPOOLS.in_child = _before_fork, _in_child

"""The one lock around every SQLite call of this process, and what a fork does to spools.

SQLite has mutexes of its own. A fork while another thread holds one leaves it locked in the
child for ever, and a child that inherits an open connection can delete the parent's WAL by
closing the file. So none of our code touches SQLite without this lock, which is held for whole
transactions, and a fork takes the lock and closes every file first.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from typing import Protocol

from otel_cbtop_exporter.fork_lock import SPOOLS

__all__ = ["ForkAware", "holds_spool_lock", "spool_lock", "watch_forks"]


class ForkAware(Protocol):
    """Something that must know about forks; both methods are called with the spool lock held."""

    def before_fork(self) -> None:
        """Close what a child must not inherit open; the parent reopens it when needed."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent, without touching it."""
        ...


_watched: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def spool_lock() -> AbstractContextManager[bool]:
    """Return the lock: for SQLite and the state that describes it, never for logs or callbacks."""
    return SPOOLS.lock


def holds_spool_lock() -> bool:
    """Return whether this thread holds the lock."""
    # There is no public way to ask; `threading.Condition` asks its lock like this, too.
    return bool(SPOOLS.lock._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001


def watch_forks(thing: ForkAware) -> None:
    """Have a thing's hooks called at forks, for as long as it lives."""
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

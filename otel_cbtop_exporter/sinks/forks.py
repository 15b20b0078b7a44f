"""Forks wait until a client library is imported and has taken its first steps."""

from __future__ import annotations

from contextlib import AbstractContextManager

from otel_cbtop_exporter.fork_lock import ForkLock

__all__ = ["forks_wait"]

_fork_lock = ForkLock()


def forks_wait() -> AbstractContextManager[bool]:
    """Have forks wait for what is done inside: imports, and a client library's first steps.

    Python locks a module while it is being imported. A child that was forked then has the lock
    and not the thread that would give it back, so it could never import the library: it would
    wait for ever with its first batch. Never for what waits for the outside, or logs.
    """
    return _fork_lock.lock

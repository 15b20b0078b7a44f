"""Forks wait until a client library is imported and has taken its first steps."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["forks_wait"]

_importing = threading.RLock()


@contextmanager
def forks_wait() -> Iterator[None]:
    """Have forks wait for what is done inside: imports, and a client library's first steps.

    Python locks a module while it is being imported. A child that was forked then has the lock
    and not the thread that would give it back, so it could never import the library: it would
    wait for ever with its first batch. Never for what waits for the outside, or logs.
    """
    with _importing:
        yield


def _before_fork() -> None:
    _importing.acquire()


def _after_fork_in_parent() -> None:
    _importing.release()


def _after_fork_in_child() -> None:
    # A new lock, not a release: a server that forks in C runs this hook alone.
    global _importing  # noqa: PLW0603 -- once in each forked child, before any thread of it
    _importing = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )

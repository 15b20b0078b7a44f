"""A clean exit where SIGTERM would otherwise end the process at once and lose its queues."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

__all__ = ["exit_on_sigterm"]

# How long exporters may take to shut down.
_QUIET_SECONDS = 30.0


class _Exit:
    """A handler that exits cleanly.

    Args:
        quiet_seconds: How long further signals are ignored.
    """

    def __init__(self, quiet_seconds: float) -> None:
        self._quiet_seconds = quiet_seconds
        self._since: float | None = None

    def __call__(self, *_: Any) -> None:
        now = time.monotonic()
        # A second signal, for example of a supervisor that signals a whole group, would interrupt
        # the clean exit. Not ignored for ever: somebody may have swallowed the first exit.
        if self._since is None or now - self._since > self._quiet_seconds:
            self._since = now
            sys.exit(128 + signal.SIGTERM)


def exit_on_sigterm() -> None:
    """Install the handler if SIGTERM has its default action; only on the main thread."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _Exit(_QUIET_SECONDS))

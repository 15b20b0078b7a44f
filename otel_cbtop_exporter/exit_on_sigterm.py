"""A clean exit where SIGTERM would end the process at once, with its queues."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

__all__ = ["exit_on_sigterm"]

# How long more of the signal does nothing: what exporters have for their shutdown.
_EXIT_SECONDS = 30.0

_exiting_since: float | None = None


def exit_on_sigterm() -> None:
    """Install a handler, where the default action stands; on the main thread only."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def _exit(*_: Any) -> None:
    global _exiting_since  # noqa: PLW0603 -- the process has one handler of the signal
    now = time.monotonic()
    # A second one, as of a supervisor that signals a whole group, would end the clean exit in its
    # middle. Not for ever: somebody may have swallowed the first one.
    if _exiting_since is None or now - _exiting_since > _EXIT_SECONDS:
        _exiting_since = now
        sys.exit(128 + signal.SIGTERM)

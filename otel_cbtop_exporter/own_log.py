"""What this package logs itself: seldom, without a lock, and where somebody sees it.

Three things go wrong with the log of a telemetry exporter: an outage is a flood of lines; a
handler exports the line through the very exporter that is busy with it; and an instrumented
application whose only handler is OpenTelemetry's shows it to nobody.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["HeldLog", "RateLimitedLog", "counted", "were"]

_LOG_INTERVAL_SECONDS = 60.0
_MOST_HELD_LINES = 100


class _HeldBack(NamedTuple):
    """Messages of one cause that were not logged: the last of them, and how many."""

    level: int
    message: str
    messages: int
    events: int

    def __str__(self) -> str:
        if self.events:
            return f"{counted(self.events, 'more event')} since the last message"
        return f"{self.messages} more of this kind since the last message"


class RateLimitedLog:
    """Logs each cause at most once a minute, so that an outage is a line and not a flood.

    Args:
        logger: Where to.
        monotonic: Seconds that never go back.
    """

    def __init__(
        self, logger: logging.Logger, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._monotonic = monotonic
        # Reentrant: a signal handler may end a span on the thread that holds it.
        self._lock = threading.RLock()
        self._next: dict[str, float] = {}
        self._held_back: dict[str, _HeldBack] = {}

    def is_due(self, cause: str) -> bool:
        """Whether the next message of a cause will be logged."""
        now = self._monotonic()
        return now >= self._next.get(cause, now)

    def log(self, level: int, cause: str, message: str, *, events: int = 0) -> None:
        """Log a message unless its cause was logged within the last minute.

        Args:
            level: Of `logging`.
            cause: A short stable word; the limit is for each of them.
            message: Whole, never with attribute values, event data or a secret.
            events: How many events it tells of, so that those of messages that were not logged
                can be told as a sum.
        """
        now = self._monotonic()
        with self._lock:
            held = self._held_back.get(cause)
            if now < self._next.get(cause, now):
                messages, before = (held.messages, held.events) if held else (0, 0)
                self._held_back[cause] = _HeldBack(level, message, messages + 1, before + events)
                return
            self._next[cause] = now + _LOG_INTERVAL_SECONDS
            self._held_back.pop(cause, None)
        self._logger.log(level, "%s%s", message, f" ({held})" if held else "")

    def tell_due(self) -> None:
        """Log how many events were held back of causes whose minute is over.

        For whoever comes by often: a loss that stops would not be told to its end otherwise.
        """
        if not self._held_back:
            return
        now = self._monotonic()
        with self._lock:
            due = [
                (cause, held)
                for cause, held in list(self._held_back.items())
                if held.events and now >= self._next[cause]
            ]
            for cause, _ in due:
                self._held_back.pop(cause, None)
                self._next[cause] = now + _LOG_INTERVAL_SECONDS
        for _, held in due:
            self._tell(held)

    def tell_held_back(self) -> None:
        """Log how many events were held back, each cause once: nobody will come again."""
        with self._lock:
            held_back, self._held_back = self._held_back, {}
        for held in held_back.values():
            if held.events:
                self._tell(held)

    def _tell(self, held: _HeldBack) -> None:
        self._logger.log(held.level, "%s (the last of %s)", held.message, held)


class HeldLog:
    """Log lines that wait until no lock is held; safe between threads.

    A handler may export them at once, through the sink whose lock it is.

    Args:
        logger: Where to.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lines: deque[tuple[int, str, tuple[object, ...]]] = deque(maxlen=_MOST_HELD_LINES)

    def log(self, level: int, template: str, *arguments: object) -> None:
        """Take a line, as `logging.Logger.log` would."""
        self._lines.append((level, template, arguments))

    def tell(self) -> None:
        """Log what was taken."""
        while self._lines:
            try:
                level, template, arguments = self._lines.popleft()
            except IndexError:  # another thread was quicker
                return
            self._logger.log(level, template, *arguments)


class _LastResort(logging.Handler):
    """Writes warnings to standard error where all other handlers are OpenTelemetry's.

    Python does so itself where there is no handler at all. Auto-instrumentation adds one, which
    sends the line that says why nothing arrives to where nothing arrives.
    """

    def emit(self, record: logging.LogRecord) -> None:
        fallback = logging.lastResort
        if fallback is None or record.levelno < fallback.level:
            return
        if not any(map(_is_seen, _handlers_of(record.name))):
            named = copy.copy(record)  # among others' lines nobody would know whose it is
            named.msg, named.args = f"{record.name}: {record.getMessage()}", None
            fallback.handle(named)


def counted(number: int, what: str = "event") -> str:
    """Return a number of things, as a message has it."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def were(number: int, what: str = "event") -> str:
    """Return a number of things, and the verb of what became of them."""
    return f"{counted(number, what)} {'was' if number == 1 else 'were'}"


def _is_seen(handler: logging.Handler) -> bool:
    # A NullHandler is somebody's wish that nothing is seen.
    is_telemetry = type(handler).__module__.startswith("opentelemetry.")
    return not is_telemetry and not isinstance(handler, _LastResort)


def _handlers_of(name: str) -> Iterator[logging.Handler]:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


logging.getLogger("otel_cbtop_exporter").addHandler(_LastResort())

"""How this package itself logs: rarely, without holding a lock, and where somebody sees it.

Three things go wrong with the log of a telemetry exporter: an outage becomes a flood of lines; a
handler exports the line through the very exporter that is logging it; and in an instrumented
application whose only handler is OpenTelemetry's, nobody sees it.
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

# Standard error has the lines of other workers and programs, too.
_WHOLE_LINE = logging.Formatter("%(asctime)s %(levelname)s [%(process)s] %(name)s: %(message)s")


class _HeldBack(NamedTuple):
    """Messages with one cause that were not logged: the last of them, and how many."""

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
        logger: Where to log.
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
        """Return whether the next message with this cause will be logged."""
        now = self._monotonic()
        return now >= self._next.get(cause, now)

    def log(self, level: int, cause: str, message: str, *, events: int = 0) -> None:
        """Log a message unless its cause was logged within the last minute.

        Args:
            level: A level of `logging`.
            cause: A short stable word; the limit applies to each cause separately.
            message: The complete message; never with attribute values, event data or secrets.
            events: How many events the message is about. For messages that are not logged, these
                are summed and logged later.
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
        """Log the held-back events of every cause whose minute is over.

        Call this often: otherwise the rest of a loss that has stopped would not be logged.
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
        """Log the held-back events of every cause now, at the end: no later call will do it."""
        with self._lock:
            held_back, self._held_back = self._held_back, {}
        for held in held_back.values():
            if held.events:
                self._tell(held)

    def _tell(self, held: _HeldBack) -> None:
        self._logger.log(held.level, "%s (the last of %s)", held.message, held)


class HeldLog:
    """Log lines that wait until no lock is held; thread-safe.

    A handler may export a line at once, through the very sink whose lock is held.

    Args:
        logger: Where to log.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lines: deque[tuple[int, str, tuple[object, ...]]] = deque(maxlen=_MOST_HELD_LINES)

    def log(self, level: int, template: str, *arguments: object) -> None:
        """Collect a line; takes what `logging.Logger.log` takes."""
        self._lines.append((level, template, arguments))

    def tell(self) -> None:
        """Log the collected lines."""
        while self._lines:
            try:
                level, template, arguments = self._lines.popleft()
            except IndexError:  # another thread was faster
                return
            self._logger.log(level, template, *arguments)


class _LastResort(logging.Handler):
    """Writes warnings to standard error if all other handlers are OpenTelemetry's.

    Python itself does so if there is no handler at all. Auto-instrumentation adds one, which
    sends the line that says why nothing arrives to the place where nothing arrives.
    """

    def emit(self, record: logging.LogRecord) -> None:
        fallback = logging.lastResort
        if fallback is None or record.levelno < fallback.level:
            return
        if not any(map(_is_seen, _handlers_of(record.name))):
            whole = copy.copy(record)
            whole.msg, whole.args = _WHOLE_LINE.format(record), None
            whole.exc_info = whole.exc_text = whole.stack_info = None  # already in the text
            fallback.handle(whole)


def counted(number: int, what: str = "event") -> str:
    """Return a number with its noun, for a message."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def were(number: int, what: str = "event") -> str:
    """Return a number with its noun and "was" or "were", for a message."""
    return f"{counted(number, what)} {'was' if number == 1 else 'were'}"


def _is_seen(handler: logging.Handler) -> bool:
    # A NullHandler counts as seen: somebody wants these lines to go nowhere.
    is_telemetry = type(handler).__module__.startswith("opentelemetry.")
    return not is_telemetry and not isinstance(handler, _LastResort)


def _handlers_of(name: str) -> Iterator[logging.Handler]:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


logging.getLogger("otel_cbtop_exporter").addHandler(_LastResort())

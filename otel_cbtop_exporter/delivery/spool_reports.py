"""What a spool has to say: events that it dropped, and sentences for the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from otel_cbtop_exporter.delivery.process_lock import process_lock
from otel_cbtop_exporter.tally import Tally

__all__ = ["Reports"]


class Reports:
    """Collects under the process lock, and tells without it: a log handler may block, or export.

    Args:
        on_dropped: Told a reason and what was dropped.
        on_notice: Told a short stable cause and a sentence.
    """

    def __init__(
        self,
        on_dropped: Callable[[str, Tally], None] | None,
        on_notice: Callable[[str, str], None] | None,
    ) -> None:
        self._on_dropped = on_dropped
        self._on_notice = on_notice
        self._dropped: dict[str, Tally] = {}
        self._notices: list[tuple[str, str]] = []

    def drop(self, reason: str, tally: Tally) -> None:
        """Count events that left without being settled."""
        if tally.events > 0:
            self._dropped[reason] = self._dropped.get(reason, Tally()) + tally

    def note(self, cause: str, message: str) -> None:
        """Say something; each cause is limited to once a minute by whoever logs it."""
        self._notices.append((cause, message))

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Hold the process lock inside of the block, and tell behind it what there is to tell."""
        try:
            with process_lock():
                yield
        finally:
            self._tell()

    def _tell(self) -> None:
        if not self._dropped and not self._notices:
            return
        with process_lock():
            dropped, self._dropped = self._dropped, {}
            notices, self._notices = self._notices, []
        for reason, tally in dropped.items():
            if self._on_dropped is not None:
                self._on_dropped(reason, tally)
        for cause, message in notices:
            if self._on_notice is not None:
                self._on_notice(cause, message)

    def forget(self) -> None:
        """Drop what was collected: in a forked child it is the parent's to tell."""
        self._dropped = {}
        self._notices = []

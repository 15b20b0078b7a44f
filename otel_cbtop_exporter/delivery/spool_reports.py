"""What a spool reports: events that it dropped, and sentences for the log."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from otel_cbtop_exporter.delivery.spool_lock import holds_spool_lock, spool_lock
from otel_cbtop_exporter.tally import Tally

__all__ = ["Reports", "reporting"]


_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Reporting(Protocol):
    _reports: Reports


_S = TypeVar("_S", bound=_Reporting)


def reporting(method: Callable[Concatenate[_S, _P], _T]) -> Callable[Concatenate[_S, _P], _T]:
    """Hold the spool lock during a method, and afterwards pass on what it reported."""

    # Not a context manager, for the reason given at `ForkLock`.
    @functools.wraps(method)
    def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            with spool_lock():
                return method(self, *args, **kwargs)
        finally:
            self._reports.tell()

    return call


class Reports:
    """Collects reports under the spool lock and passes them on without it.

    Without it, because a log handler may block, or export.

    Args:
        on_dropped: Called with a reason and what left without being settled; on the thread that
            made it leave.
        on_notice: Called likewise, with a short stable cause and a sentence for the log.
    """

    def __init__(
        self,
        on_dropped: Callable[[str, Tally], None] | None = None,
        on_notice: Callable[[str, str], None] | None = None,
    ) -> None:
        self._on_dropped = on_dropped
        self._on_notice = on_notice
        self._dropped: dict[str, Tally] = {}
        self._notices: list[tuple[str, str]] = []

    def drop(self, reason: str, tally: Tally) -> None:
        """Count events that left without being settled."""
        if tally.events > 0:
            with spool_lock():
                self._dropped[reason] = self._dropped.get(reason, Tally()) + tally

    def note(self, cause: str, message: str) -> None:
        """Add a sentence for the log; the logger limits each cause to once a minute."""
        with spool_lock():
            self._notices.append((cause, message))

    def tell(self) -> None:
        """Pass on what was collected; while this thread holds the lock, a later call does."""
        if not (self._dropped or self._notices) or holds_spool_lock():
            return
        with spool_lock():
            dropped, self._dropped = self._dropped, {}
            notices, self._notices = self._notices, []
        for reason, tally in dropped.items():
            if self._on_dropped is not None:
                self._on_dropped(reason, tally)
        for cause, message in notices:
            if self._on_notice is not None:
                self._on_notice(cause, message)

    def forget(self) -> None:
        """Discard what was collected: in a forked child it is the parent's to report."""
        self._dropped = {}
        self._notices = []

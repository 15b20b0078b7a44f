"""What did not arrive: it is counted, logged at most once a minute, and kept if possible.

Every part of a pipeline reports its losses here, so there is only one place where an event can
leave without having been delivered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from otel_cbtop_exporter.delivery.dead_letters import FILE_NAME, DeadLetters
from otel_cbtop_exporter.delivery.retry import Clock
from otel_cbtop_exporter.health import HealthCounters
from otel_cbtop_exporter.own_log import RateLimitedLog, counted, were
from otel_cbtop_exporter.sdk_metrics import SdkMetrics
from otel_cbtop_exporter.sinks.base import Record, Rejection
from otel_cbtop_exporter.tally import Tally

__all__ = ["Outcomes"]

_logger = logging.getLogger("otel_cbtop_exporter")

_T = TypeVar("_T")


class Outcomes:
    """Counts and logs what became of one sink's events; thread-safe.

    Args:
        sink_name: Named in every log line.
        spool_path: The folder for the dead letters; with None there are none.
        clock: For the rate limit of the log and the time of dead letters.
        metrics: Counts every outcome as well, for OpenTelemetry metrics; None without them.
    """

    def __init__(
        self,
        sink_name: str,
        spool_path: str | None,
        clock: Clock,
        metrics: SdkMetrics | None = None,
    ) -> None:
        self._sink_name = sink_name
        self._clock = clock
        self._dead_letters = DeadLetters(Path(spool_path) / FILE_NAME) if spool_path else None
        self.counters = HealthCounters(metrics)
        self.log = RateLimitedLog(_logger, clock.monotonic)

    def reject(self, rejections: Sequence[Rejection], why: str = "") -> None:
        """Count what was refused for good, and keep it in the dead letters.

        Args:
            rejections: In any order.
            why: One sentence without data, for the log; by default only the reasons are logged.
        """
        by_reason: dict[str, list[Record]] = {}
        for rejection in rejections:
            by_reason.setdefault(rejection.reason, []).append(rejection.record)
        for reason, records in by_reason.items():
            self.counters.rejected(reason, Tally.of(records))
        reasons = ", ".join(sorted(by_reason))
        what = f"{were(len(rejections))} rejected: {reasons}{why and f'; {why}'}"
        self.notice(f"rejected {reasons}", what, events=len(rejections))
        if self._dead_letters is not None:
            try:
                self._dead_letters.write(rejections, self._sink_name, self._clock.time_ns())
            except OSError as error:
                self.notice("dead_letters", f"dead letters cannot be written: {error}")

    def drop(self, reason: str, tally: Tally, why: str | None = None) -> None:
        """Count events that are lost.

        Args:
            reason: A short stable word.
            tally: How many events, by kind.
            why: One sentence without data; by default the sink's last error.
        """
        self.counters.dropped(reason, tally)
        why = why or self.counters.last_error or "the sink has not answered yet"
        what = f"{were(tally.events)} dropped ({reason}): {why}"
        self.notice(f"dropped {reason}", what, events=tally.events)

    def lose_values(self, lost: Mapping[str, int]) -> None:
        """Count values that are missing or shortened in events, by reason."""
        for reason, values in lost.items():
            self.counters.values_lost(reason, values)
            self.notice(
                f"lost {reason}", f"{counted(values, 'value')} could not be written whole: {reason}"
            )

    def notice(self, cause: str, message: str, *, events: int = 0) -> None:
        """Log a warning about this sink, at most once a minute for each cause."""
        what = f"sink {self._sink_name}: {message}"
        self.log.log(logging.WARNING, cause, what, events=events)

    def guarded(self, what: str, call: Callable[[], _T], otherwise: _T) -> _T:
        """Call a method of the sink; if it raises, log that and return `otherwise`.

        Args:
            what: The method's name.
            call: Calls it.
            otherwise: What the caller takes for the result then.
        """
        try:
            return call()
        # A third-party sink may raise anything, which must not reach the application.
        except Exception as error:  # noqa: BLE001
            word = type(error).__name__
            self.notice(f"{what} {word}", f"{what} raised {word}")
            return otherwise

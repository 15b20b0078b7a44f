"""What waits for a sink: the spool that holds it, and the thread that empties it.

Belongs here: how the two are wired together and shut down. Not here: where records wait
(`spool.py`, `spool_folder.py`), what is sent next (`lanes.py`), and when (`drain.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.drain import Drain, Drained
from otel_cbtop_exporter.delivery.lanes import Lanes
from otel_cbtop_exporter.delivery.outcomes import Outcomes
from otel_cbtop_exporter.delivery.retry import Clock
from otel_cbtop_exporter.delivery.sender import Sender
from otel_cbtop_exporter.delivery.spool import SpoolError, SpoolStats
from otel_cbtop_exporter.delivery.spool_claim import sum_of
from otel_cbtop_exporter.delivery.spool_folder import make_spool
from otel_cbtop_exporter.delivery.spool_reports import Reports
from otel_cbtop_exporter.own_log import counted
from otel_cbtop_exporter.sinks.base import Record, Sink
from otel_cbtop_exporter.tally import Tally

__all__ = ["Backlog"]


class Backlog:
    """The waiting records of one pipeline; thread-safe.

    Before the first record it touches neither disk nor network and starts no thread.

    Args:
        sink: Where the records go.
        config: `spool`, `retry` and `timeout_ms` are read.
        sender: Writes them.
        outcomes: Counts and logs everything that does not arrive.
        clock: Time.
        jitter: Returns a number in [0, 1).
    """

    def __init__(
        self,
        sink: Sink,
        config: ExporterConfig,
        *,
        sender: Sender,
        outcomes: Outcomes,
        clock: Clock,
        jitter: Callable[[], float],
    ) -> None:
        self._outcomes = outcomes
        self._store = make_spool(
            config.spool,
            sink.name,
            sink.destination,
            reports=Reports(outcomes.drop, outcomes.notice),
            clock=clock,
        )
        self._left: SpoolStats | None = None
        self._close_sink = partial(outcomes.guarded, "close", partial(sink.close, 0.0), None)
        self._lanes = Lanes(
            spools=self._store.spools,
            adopt=self._store.adopt,
            sender=sender,
            retry=config.retry,
            clock=clock,
            jitter=jitter,
            # Optional, not in the Sink protocol: a sink may allow one request more time.
            write_timeout_seconds=max(
                config.timeout_ms / 1_000, getattr(sink, "request_seconds", 0.0)
            ),
            reject=outcomes.reject,
        )
        self._drain = Drain(
            self._lanes,
            name=f"cbtop-{sink.name}",
            clock=clock,
            log=outcomes.log,
        )

    def append(self, records: Sequence[Record]) -> bool:
        """Take records; False if they could not be kept, so that they were dropped and counted."""
        try:
            self._store.append(records)
        except SpoolError as error:
            self._outcomes.drop("spool_error", Tally.of(records), str(error))
            return False
        # No error of a file system may reach the application, or lose records uncounted.
        except Exception as error:  # noqa: BLE001
            word = type(error).__name__
            self._outcomes.drop(word, Tally.of(records), f"the spool raised {word}")
            return False
        if not self._drain.wake():
            # Close again: otherwise memory would lose them uncounted, and a file would stay held.
            self._close_store()
            return False
        return True

    def drain(self, deadline: float, stall_seconds: Callable[[], float]) -> Drained:
        """Wait until everything taken so far has left the spool; see `Drain.drain`."""
        return self._drain.drain(deadline, stall_seconds)

    def has_refused(self) -> bool:
        """Whether something that waits was refused at its last try."""
        return self._lanes.has_refused()

    def stats(self) -> SpoolStats:
        """Return what waits; after `close`, what was left on disk."""
        return self._left or self._store.stats()

    def inflight(self) -> Tally:
        """Return what waits in this process; what it left on disk belongs to the next one."""
        return self._store.stats().waiting

    def close(self, deadline: float) -> bool:
        """Stop the thread and close the spool.

        Returns:
            False if the thread hangs in a write; it closes the sink when that ends.
        """
        ended = self._drain.stop(deadline, self._close_sink)
        self._close_store()
        return ended

    def _close_store(self) -> None:
        left = self._store.close()
        self._left = left if self._left is None else sum_of([self._left, left])
        if waiting := left.events_spooled:
            wait = "waits" if waiting == 1 else "wait"
            what = f"{counted(waiting)} {wait} on disk for the next process"
            self._outcomes.notice("left", what)

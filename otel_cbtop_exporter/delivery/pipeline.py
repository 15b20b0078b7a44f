"""The pipeline: one sink with its delivery, shared by the exporters that write to it.

Belongs here: what accepting a batch means, sharing, shutdown and the fork. Not here: how
records are tried (`sender.py`), where they wait (`spool.py`), who empties it (`drain.py`).
"""

from __future__ import annotations

import math
import os
import random
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence

import msgspec

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.away_budget import AwayBudget
from otel_cbtop_exporter.delivery.drain import Drain
from otel_cbtop_exporter.delivery.lanes import Lanes
from otel_cbtop_exporter.delivery.outcomes import Outcomes
from otel_cbtop_exporter.delivery.retry import SYSTEM_CLOCK, Clock
from otel_cbtop_exporter.delivery.sender import Sender
from otel_cbtop_exporter.delivery.spool import Spool, SpoolError, SpoolStats
from otel_cbtop_exporter.delivery.spool_folder import make_spool
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.health import SinkHealth
from otel_cbtop_exporter.sinks.base import Record, Sink

__all__ = ["Pipeline", "acquire"]


class Pipeline:
    """One sink with its delivery; safe between threads, starts nothing when it is made.

    Args:
        sink: Where records go; closed with the pipeline.
        config: `delivery`, `spool`, `retry`, `timeout_ms` and the batch limits are read.
        clock: Time; tests bring their own.
        jitter: Returns a number in [0, 1).
    """

    def __init__(
        self,
        sink: Sink,
        config: ExporterConfig,
        *,
        clock: Clock = SYSTEM_CLOCK,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._sink = sink
        self._config = config
        self._clock = clock
        self._jitter = jitter
        self._spooled = config.delivery == "spooled" and (
            config.spool.path is not None or not sink.local
        )
        self._holders = 1
        self._closed = False
        self._begin()
        with _registry_lock:
            _live.add(self)
        _away_budget.renew()  # this is not the end of the process yet

    def _begin(self) -> None:
        """Make everything that a forked child must have of its own."""
        config, clock = self._config, self._clock
        self._condition = threading.Condition()
        self._outcomes = Outcomes(self._sink.name, config.spool.path, clock)
        self._sender = Sender(
            self._sink,
            counters=self._outcomes.counters,
            log=self._outcomes.log,
            retry=config.retry,
            max_batch_events=config.max_batch_events,
            max_batch_bytes=config.max_batch_bytes,
            clock=clock,
            jitter=self._jitter,
            wait=self._wait_unless_closed,
        )
        self._store = make_spool(
            config.spool,
            self._sink.name,
            self._sink.destination,
            on_dropped=self._outcomes.drop,
            on_notice=self._outcomes.notice,
        )
        self._left: SpoolStats | None = None  # on disk, when the pipeline was closed
        self._adopted_before = False
        self._drain = Drain(
            Lanes(
                spools=self._spools,
                adopt=self._adopt,
                sender=self._sender,
                retry=config.retry,
                clock=clock,
                jitter=self._jitter,
                reject=self._outcomes.reject,
            ),
            name=f"cbtop-{self._sink.name}",
            write_timeout_seconds=config.timeout_ms / 1_000,
            clock=clock,
            log=self._outcomes.log,
        )

    def submit(self, events: Sequence[Event], timeout_seconds: float) -> bool:
        """Take a batch: encode it once, and deliver it or commit it to the spool.

        Never raises. Whatever does not arrive is counted.

        Args:
            events: In order.
            timeout_seconds: The longest that a direct delivery may take.

        Returns:
            True if the records were delivered or are in the spool; False if some were
            dropped, or every one of them was rejected.
        """
        if not events:
            return True
        deadline = self._clock.monotonic() + timeout_seconds
        if self._closed:
            self._outcomes.drop("shutdown", len(events), "the exporter was shut down before")
            return False
        records = self._encode(events)
        if not records:
            return False
        return self._spool(records) if self._spooled else self._send(records, deadline)

    def force_flush(self, timeout_seconds: float) -> bool:
        """Try to deliver everything accepted up to now; False if some of it still waits.

        Waits for as long as the time allows, but not for a retry that would come later.
        """
        deadline = self._clock.monotonic() + timeout_seconds
        drained = self._drain.drain(deadline, stall_seconds=math.inf)
        left = max(0.0, deadline - self._clock.monotonic())
        return drained.done and self._sink.flush(left)

    def release(self, timeout_seconds: float) -> None:
        """Give up one holder's share: deliver what the sink takes; the last one closes.

        Never takes longer than the time given, and with the backend away never longer than
        what is left of the process's budget of 3 s. What is in a spool on disk stays there.
        """
        deadline = self._clock.monotonic() + timeout_seconds
        with _registry_lock:
            self._holders -= 1
            last = self._holders == 0
            if last:
                for key in [key for key, shared in _shared.items() if shared is self]:
                    del _shared[key]
            stall_seconds = _away_budget.share(_open_pipelines())
        if last:
            with self._condition:
                self._closed = True
                self._condition.notify_all()
        drained = self._drain.drain(deadline, stall_seconds)
        _away_budget.spend(drained.stalled_seconds)
        if last:
            self._close(deadline)

    def health(self) -> SinkHealth:
        """Return the counters of this process, and what waits; once closed, what it left."""
        stats = self._left or self._store.stats()
        health = self._outcomes.counters.snapshot(
            events_spooled=stats.events_spooled,
            spool_bytes=stats.spool_bytes,
            oldest_spooled_ns=stats.oldest_ns,
        )
        # Not in the Sink protocol: a sink whose client keeps no statistics has nothing to say.
        client_statistics: Mapping[str, int] = getattr(self._sink, "statistics", dict)()
        return msgspec.structs.replace(health, client_statistics=client_statistics)

    @property
    def closed(self) -> bool:
        """Whether the last holder has released it."""
        return self._closed

    def hold(self) -> None:
        """Count one holder more; `acquire` calls it, under the registry's lock."""
        self._holders += 1

    def after_fork_in_child(self) -> None:
        """Begin anew, with nothing of the parent's."""
        self._begin()
        self._sink.after_fork_in_child()

    def _encode(self, events: Sequence[Event]) -> list[Record]:
        try:
            encoded = self._sink.encode(events)
        # An encoder must not raise, but one that does must not reach the application.
        except Exception as error:  # noqa: BLE001
            word = type(error).__name__
            self._outcomes.drop(word, len(events), f"encoding raised {word}")
            return []
        if encoded.rejected:
            self._outcomes.reject(encoded.rejected)
        return encoded.records

    def _spool(self, records: Sequence[Record]) -> bool:
        try:
            self._store.append(records, self._clock.time_ns())
        except SpoolError as error:
            self._outcomes.drop("spool_error", len(records), str(error))
            return False
        self._drain.wake()
        return True

    def _send(self, records: Sequence[Record], deadline: float) -> bool:
        sent = self._sender.send(records, deadline)
        if sent.rejected:
            self._outcomes.reject(sent.rejected)
        if sent.kept:
            self._outcomes.drop(sent.error_type or "kept", len(sent.kept), sent.error)
        return bool(sent.delivered) and not sent.kept

    def _close(self, deadline: float) -> None:
        ended = self._drain.stop(deadline)
        self._left = self._store.close()
        if waiting := self._left.events_spooled:
            self._outcomes.notice("left", f"{waiting} events wait on disk for the next process")
        if ended:
            self._sink.close(max(0.0, deadline - self._clock.monotonic()))

    def _spools(self) -> Sequence[Spool]:
        return [self._store] if isinstance(self._store, Spool) else self._store.spools()

    def _adopt(self) -> bool:
        if isinstance(self._store, Spool):
            return False
        adopted = self._store.adopt()
        if not self._adopted_before:
            self._adopted_before = True
            for folder in self._store.foreign():
                self._outcomes.notice("foreign", f"{folder} holds events of another destination")
        return bool(adopted)

    def _wait_unless_closed(self, seconds: float) -> bool:
        """Wait; True as soon as the pipeline is closed."""
        end = self._clock.monotonic() + seconds
        with self._condition:
            while not self._closed and (left := end - self._clock.monotonic()) > 0:
                self._clock.wait(self._condition, left)
            return self._closed


# It guards everything below and the holders of every pipeline; never held over anything slow.
# Reentrant: whoever acquires a pipeline makes it under the lock.
_registry_lock = threading.RLock()
_shared: dict[Hashable, Pipeline] = {}
_live: weakref.WeakSet[Pipeline] = weakref.WeakSet()
_away_budget = AwayBudget()


def _open_pipelines() -> int:
    with _registry_lock:
        return sum(not pipeline.closed for pipeline in _live)


def acquire(key: Hashable, make_sink: Callable[[], Sink], config: ExporterConfig) -> Pipeline:
    """Return the pipeline of a key, shared with whoever asked for that key before.

    Each caller is one holder and calls `Pipeline.release` once. After the last one has, the
    next `acquire` makes a new pipeline.

    Args:
        key: Equal for equal destinations and options.
        make_sink: Called only where there is no pipeline yet.
        config: Of a new pipeline.
    """
    with _registry_lock:
        pipeline = _shared.get(key)
        if pipeline is not None:
            pipeline.hold()
            return pipeline
        pipeline = _shared[key] = Pipeline(make_sink(), config)
        return pipeline


def _before_fork() -> None:
    # So that no holder is half counted; pipelines themselves begin anew in the child, so
    # their locks may be in any state. The spool's hook, which waits for SQLite, runs later.
    _registry_lock.acquire()


def _after_fork_in_parent() -> None:
    _registry_lock.release()


def _after_fork_in_child() -> None:
    # A new lock, not a release: a server that forks in C runs this hook alone.
    global _registry_lock  # noqa: PLW0603 -- once in each forked child, before any thread of it
    _registry_lock = threading.RLock()
    _away_budget.renew()
    for pipeline in list(_live):
        pipeline.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )

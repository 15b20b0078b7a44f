"""The pipeline: one sink with its delivery, shared by the exporters that write to it.

Belongs here: what accepting a batch means, sharing, shutdown and forks. Not here: how records
are tried (`sender.py`), where they wait and who sends them from there (`backlog.py`).
"""

from __future__ import annotations

import math
import random
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.away_budget import AwayBudget
from otel_cbtop_exporter.delivery.outcomes import Outcomes
from otel_cbtop_exporter.delivery.patience import Patience
from otel_cbtop_exporter.delivery.retry import SYSTEM_CLOCK, Clock
from otel_cbtop_exporter.delivery.sender import Sender
from otel_cbtop_exporter.errors import EventError
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.fork_lock import PIPELINES, forks_wait
from otel_cbtop_exporter.health import SinkHealth, statistics_of
from otel_cbtop_exporter.sdk_metrics import SdkMetrics
from otel_cbtop_exporter.sinks.base import Record, Sink
from otel_cbtop_exporter.tally import Tally

if TYPE_CHECKING:
    from otel_cbtop_exporter.delivery.backlog import Backlog

__all__ = ["LONGEST_WAIT_SECONDS", "Pipeline", "acquire", "open_pipelines"]

LONGEST_WAIT_SECONDS = 86_400.0
"""Longer or infinite timeouts are cut to a day: the system does not accept every number."""


class Pipeline:
    """One sink with its delivery; thread-safe. Making one starts nothing.

    Args:
        sink: Where records go; it is closed with the pipeline.
        config: `delivery`, `spool`, `retry`, `timeout_ms` and the batch limits are read.
        clock: Time; tests bring their own.
        jitter: Returns a number in [0, 1).

    Attributes:
        config: As given.
        label: The sink and its destination, for people.
        is_spooled: Whether records wait in a spool; shutdown may then wait for the backend.
        is_local: Whether the sink says of itself that it is.
        holders: How many callers have acquired it and not yet released it.
        closed: Whether the last holder releases it, or has done so.
        ended: Whether it has done so: what the spool still holds waits for others.
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
        self.config = config
        self.label = f"{sink.name} {sink.destination}"
        self._clock = clock
        self._jitter = jitter
        self.is_spooled = config.delivery == "spooled" and (
            config.spool.path is not None or not sink.local
        )
        self.is_local = sink.local
        component = f"cbtop_{sink.name}_exporter"
        self._metrics = SdkMetrics(component, self._inflight) if config.internal_metrics else None
        self.holders = 1
        self.closed = self.ended = False
        self._begin()
        with PIPELINES.lock:
            _live.add(self)
        _away_budget.renew()  # the process is not ending yet

    def _begin(self) -> None:
        """Make everything that a forked child needs afresh."""
        config, clock = self.config, self._clock
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._outcomes = Outcomes(self._sink.name, config.spool.path, clock, self._metrics)
        self._patience = Patience()
        self._being_sent: dict[int, Sequence[Record]] = {}  # by id(); only of direct sends
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
            spooled=self.is_spooled,
        )
        self._backlog = self._make_backlog() if self.is_spooled else None

    def _make_backlog(self) -> Backlog:
        # SQLite, zstd and hashes take 7 ms and 4 MiB, which pipelines without a spool do without.
        with forks_wait():
            from otel_cbtop_exporter.delivery.backlog import Backlog  # noqa: PLC0415

        return Backlog(
            self._sink,
            self.config,
            sender=self._sender,
            outcomes=self._outcomes,
            clock=self._clock,
            jitter=self._jitter,
        )

    def submit(self, events: Sequence[Event], timeout_seconds: float) -> bool:
        """Accept a batch: encode it once, then deliver it or commit it to the spool.

        Never raises. Whatever does not arrive is counted.

        Args:
            events: In order.
            timeout_seconds: The longest that a direct delivery may take.

        Returns:
            True if the records were delivered or are in the spool; False if some were dropped or
            all of them were rejected.
        """
        if not events:
            return True
        deadline = self._clock.monotonic() + timeout_seconds
        self._outcomes.log.tell_due()
        if self._metrics is not None:
            self._metrics.open()
        if self.closed:
            self._outcomes.drop("shutdown", Tally.of(events), "the exporter was shut down before")
            return False
        records, ok = self._encode(events)
        if not records:
            return False
        taken = self._backlog.append(records) if self._backlog else self._send(records, deadline)
        return taken and ok

    def force_flush(self, timeout_seconds: float) -> bool:
        """Try to deliver everything accepted so far; False if some of it still waits.

        Waits until the timeout at most, and not at all for a retry that would come after it.
        """
        deadline = self._clock.monotonic() + timeout_seconds
        is_drained = True
        if self._backlog:
            is_drained = self._backlog.drain(deadline, lambda: math.inf).done
        flush = partial(self._sink.flush, max(0.0, deadline - self._clock.monotonic()))
        return is_drained and self._outcomes.guarded("flush", flush, otherwise=False)

    def release(self, timeout_seconds: float) -> None:
        """Release one holder: deliver what the sink accepts; the last holder closes the pipeline.

        Never takes longer than the timeout, and while the backend is away never longer than what
        is left of the process's budget of 3 s. What is in a spool on disk stays there.
        """
        deadline = self._clock.monotonic() + timeout_seconds
        with PIPELINES.lock:
            self.holders -= 1
            last = self.holders == 0
            if last:
                for key in [key for key, shared in _shared.items() if shared is self]:
                    del _shared[key]
        if last:
            with self._lock:
                self.closed = True
                self._condition.notify_all()
        if self._backlog:
            _away_budget.spend(self._backlog.drain(deadline, self._share).stalled_seconds)
        if not last:
            return
        began = self._clock.monotonic()
        if not self._backlog or self._backlog.close(deadline):
            close = partial(self._sink.close, max(0.0, deadline - self._clock.monotonic()))
            self._outcomes.guarded("close", close, otherwise=None)
        else:  # its thread hangs in a write, and was waited for in vain
            _away_budget.spend(self._clock.monotonic() - began)
        self.ended = True
        self._outcomes.log.tell_held_back()

    def health(self) -> SinkHealth:
        """Return the counters of this process and what waits; once closed, what it left."""
        # Before the counters, so that what is delivered in between is not missing from both.
        waiting = self._backlog.stats() if self._backlog else None
        return msgspec.structs.replace(
            self._outcomes.counters.snapshot(),
            events_spooled=waiting.events_spooled if waiting else 0,
            spool_bytes=waiting.spool_bytes if waiting else 0,
            oldest_spooled_ns=waiting.oldest_ns if waiting else None,
            client_statistics=self._outcomes.guarded(
                "statistics", partial(statistics_of, self._sink), otherwise=dict[str, float]()
            ),
        )

    def after_fork_in_child(self) -> None:
        """Start afresh, without anything of the parent's."""
        self._begin()
        self._sink.after_fork_in_child()

    def _encode(self, events: Sequence[Event]) -> tuple[Sequence[Record], bool]:
        """Return the records, and whether all events could be encoded or were rejected."""
        try:
            encoded = self._sink.encode(events)
        # An encoder must not raise, but a hand-made event may hold anything. It must cost neither
        # its neighbours nor the application.
        except Exception as error:  # noqa: BLE001
            singles = _singles(events)
            if len(singles) > 1:
                return [one for event in singles for one in self._encode([event])[0]], False
            word = type(error).__name__
            why = str(error) if isinstance(error, EventError) else f"encoding raised {word}"
            self._outcomes.drop(word, Tally.of(events), why)
            return [], False
        if encoded.rejected:
            self._outcomes.reject(encoded.rejected, encoded.why_rejected)
        self._outcomes.lose_values(encoded.values_lost)
        return encoded.records, True

    def _send(self, records: Sequence[Record], deadline: float) -> bool:
        began = self._clock.monotonic()
        self._being_sent[id(records)] = records
        try:
            sent = self._sender.send(records, self._patience.deadline(deadline, began))
        finally:
            self._being_sent.pop(id(records), None)  # missing in a child that was forked meanwhile
        if sent.rejected:
            self._outcomes.reject(sent.rejected, sent.why_rejected)
        if sent.kept:
            self._outcomes.drop(sent.error_type or "kept", Tally.of(sent.kept), sent.error)
        in_vain = not sent.delivered and not sent.rejected
        self._patience.ended(began, self._clock.monotonic(), in_vain=in_vain)
        return bool(sent.delivered) and not sent.kept

    def _share(self) -> float:
        """Return how long this holder may wait without any progress."""
        spooled = [pipeline for pipeline in open_pipelines() if pipeline.is_spooled]
        waiting = sum(pipeline is not self for pipeline in spooled)
        if self._backlog and self._backlog.has_refused():
            # Perhaps only a topic of this holder is missing: leave each of the others its share.
            waiting = sum(pipeline.holders for pipeline in spooled)
        return _away_budget.share(1 + waiting, self._outcomes.counters.write_seconds)

    def _inflight(self) -> Tally:
        """Return what was accepted and has no outcome yet, including what dead processes left."""
        direct = (Tally.of(records) for records in list(self._being_sent.values()))
        return sum(direct, self._backlog.inflight() if self._backlog else Tally())

    def _wait_unless_closed(self, seconds: float) -> bool:
        """Wait so many seconds; True as soon as the pipeline is closed."""
        end = self._clock.monotonic() + seconds
        with self._lock:
            while not self.closed and (left := end - self._clock.monotonic()) > 0:
                self._clock.wait(self._condition, left)
            return self.closed


def _singles(events: Sequence[Event]) -> Sequence[Event]:
    """Return the events as a list; empty if they cannot be made from their table."""
    try:
        return list(events)
    except Exception:  # noqa: BLE001  the caller counts them, and this must not reach the application
        return ()


_shared: dict[Hashable, Pipeline] = {}
_live: weakref.WeakSet[Pipeline] = weakref.WeakSet()
_away_budget = AwayBudget()


def open_pipelines(*, or_closed: bool = False) -> list[Pipeline]:
    """Return the pipelines of this process that are open, or closed but still referenced."""
    with PIPELINES.lock:
        return [pipeline for pipeline in _live if or_closed or not pipeline.closed]


def acquire(key: Hashable, make_sink: Callable[[], Sink], config: ExporterConfig) -> Pipeline:
    """Return the pipeline for a key, shared with everyone who asked for that key before.

    Each caller is one holder and must call `Pipeline.release` once. After the last release, the
    next `acquire` makes a new pipeline.

    Args:
        key: Equal for equal destinations and options.
        make_sink: Called only if there is no pipeline yet.
        config: For a new pipeline.
    """
    with PIPELINES.lock:
        pipeline = _shared.get(key)
        if pipeline is not None:
            pipeline.holders += 1
            return pipeline
        pipeline = _shared[key] = Pipeline(make_sink(), config)
        return pipeline


def _in_child() -> None:
    _away_budget.renew()
    # All of them, even if a third-party sink raises: no other may remain as the parent left it.
    with ExitStack() as each:
        for pipeline in list(_live):
            each.callback(pipeline.after_fork_in_child)


# Its lock guards the globals above and every pipeline's `holders`, so that a child never finds them
# half updated. Never held during anything slow. Reentrant: `acquire` makes a pipeline under it.
PIPELINES.in_child = _in_child

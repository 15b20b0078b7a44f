"""The pipeline: one sink with its delivery, shared by the exporters that write to it.

Belongs here: what accepting a batch means, sharing, shutdown and the fork. Not here: how
records are tried (`sender.py`), where they wait (`spool.py`), who empties it (`drain.py`).
"""

from __future__ import annotations

import logging
import os
import random
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.retry import SYSTEM_CLOCK, Clock
from otel_cbtop_exporter.delivery.sender import Sender
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.health import HealthCounters, RateLimitedLog, SinkHealth
from otel_cbtop_exporter.sinks.base import Record, Rejection, Sink

__all__ = ["Pipeline", "acquire"]

_logger = logging.getLogger("otel_cbtop_exporter")


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
        self._holders = 1
        self._closed = False
        self._begin()
        _live.add(self)

    def _begin(self) -> None:
        """Make everything that a forked child needs anew."""
        self._condition = threading.Condition()
        self._counters = HealthCounters()
        self._log = RateLimitedLog(_logger, self._clock.monotonic)
        self._sender = Sender(
            self._sink,
            counters=self._counters,
            log=self._log,
            retry=self._config.retry,
            max_batch_events=self._config.max_batch_events,
            max_batch_bytes=self._config.max_batch_bytes,
            clock=self._clock,
            jitter=self._jitter,
            wait=self._wait_unless_closed,
        )

    def submit(self, events: Sequence[Event], timeout_seconds: float) -> bool:
        """Take a batch: encode it once, and deliver it or commit it to the spool.

        Never raises. Whatever does not arrive is counted.

        Args:
            events: In order.
            timeout_seconds: The longest that this may take.

        Returns:
            True if the records were delivered or are in the spool; False if some were
            dropped, or every one of them was rejected.
        """
        deadline = self._clock.monotonic() + timeout_seconds
        if self._closed:
            self._drop("shutdown", len(events), "the exporter was shut down before")
            return False
        records = self._encode(events)
        if not records:
            return not events
        return self._send(records, deadline)

    def force_flush(self, timeout_seconds: float) -> bool:
        """Push out what was accepted; False if that did not end within the time."""
        return self._sink.flush(timeout_seconds)

    def release(self, timeout_seconds: float) -> None:
        """Give up one holder's share; the last one closes. Never longer than the time given."""
        deadline = self._clock.monotonic() + timeout_seconds
        with _registry_lock:
            self._holders -= 1
            if self._holders > 0:
                return
            for key in [key for key, shared in _shared.items() if shared is self]:
                del _shared[key]
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._sink.close(max(0.0, deadline - self._clock.monotonic()))

    def health(self) -> SinkHealth:
        """Return the counters of this process."""
        return self._counters.snapshot()

    def hold(self) -> None:
        """Count one holder more; `acquire` calls it, under the registry's lock."""
        self._holders += 1

    def _encode(self, events: Sequence[Event]) -> list[Record]:
        try:
            encoded = self._sink.encode(events)
        # An encoder must not raise, but one that does must not reach the application.
        except Exception as error:  # noqa: BLE001
            word = type(error).__name__
            self._drop(word, len(events), f"sink {self._sink.name} raised {word} in encode")
            return []
        if encoded.rejected:
            self._reject(encoded.rejected)
        return encoded.records

    def _send(self, records: Sequence[Record], deadline: float) -> bool:
        sent = self._sender.send(records, deadline)
        if sent.rejected:
            self._reject(sent.rejected)
        if sent.kept:
            self._drop(sent.error_type or "kept", len(sent.kept), sent.error)
        return bool(sent.delivered) and not sent.kept

    def _reject(self, rejections: Sequence[Rejection]) -> None:
        self._counters.rejected(len(rejections))
        reasons = sorted({rejection.reason for rejection in rejections})
        self._log.log(
            logging.WARNING,
            f"rejected {reasons}",
            f"sink {self._sink.name} rejected {len(rejections)} events: {', '.join(reasons)}",
        )

    def _drop(self, reason: str, events: int, why: str) -> None:
        self._counters.dropped(reason, events)
        self._log.log(
            logging.ERROR,
            f"dropped {reason}",
            f"sink {self._sink.name}: {events} events dropped ({reason}): {why}",
        )

    def _wait_unless_closed(self, seconds: float) -> bool:
        """Wait; True as soon as the pipeline is closed."""
        end = self._clock.monotonic() + seconds
        with self._condition:
            while not self._closed and (left := end - self._clock.monotonic()) > 0:
                self._clock.wait(self._condition, left)
            return self._closed

    def after_fork_in_child(self) -> None:
        """Begin anew, with nothing of the parent's."""
        self._begin()
        self._sink.after_fork_in_child()


_registry_lock = threading.Lock()
_shared: dict[Hashable, Pipeline] = {}
_live: weakref.WeakSet[Pipeline] = weakref.WeakSet()


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
        if pipeline is None:
            pipeline = _shared[key] = Pipeline(make_sink(), config)
        else:
            pipeline.hold()
        return pipeline


def _before_fork() -> None:
    _registry_lock.acquire()


def _after_fork_in_parent() -> None:
    _registry_lock.release()


def _after_fork_in_child() -> None:
    _registry_lock.release()
    for pipeline in list(_live):
        pipeline.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )

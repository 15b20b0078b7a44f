"""Hand-made events through the same sinks, with the same guarantees, without OpenTelemetry.

Belongs here: batches for callers without the SDK. Not here: delivery (`delivery/pipeline.py`).
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import count, repeat, starmap
from types import TracebackType
from typing import TYPE_CHECKING, Any

from otel_cbtop_exporter.config import ExporterConfig, RetryConfig, SpoolConfig
from otel_cbtop_exporter.delivery.pipeline import LONGEST_WAIT_SECONDS, Pipeline
from otel_cbtop_exporter.encoding.event_json import encode_event
from otel_cbtop_exporter.env import configuration
from otel_cbtop_exporter.errors import ConfigError, EventError
from otel_cbtop_exporter.event_batch import Events
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.fork_lock import forks_wait
from otel_cbtop_exporter.health import SinkHealth
from otel_cbtop_exporter.sinks import check_sink, sink_factory
from otel_cbtop_exporter.sinks.base import Sink

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11

__all__ = ["EventBatch", "EventStreamer"]

# next() on them is atomic, so threads need no lock, and a forked child inherits none.
_batch_ids = count(1)
_correlation_ids = count(1)

# The longest that all streamers together may hold up the exit of the interpreter. While a backend
# is away it is the pipelines' 3 s.
_EXIT_SECONDS = 10.0


class EventBatch:
    """Events that are sent together; not thread-safe.

    Args:
        events: The first events of the batch.

    Attributes:
        batch_id: A number that no other batch of this process has.
        created_ns: When the batch was made, nanoseconds since the Unix epoch.
        events: The events in the order in which they were added.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.batch_id = next(_batch_ids)
        self.created_ns = time.time_ns()
        self.events = list(events)

    def __len__(self) -> int:
        return len(self.events)

    def add(self, event: Event) -> None:
        """Append one event."""
        self.events.append(event)

    def to_influx_batch(self) -> str:
        """Return the events as line protocol, one point per line, without a final newline.

        Raises:
            EventError: An event cannot be a point: because of its time or its tag keys, or because
                line protocol can carry none of its fields.
        """
        # Few need it here, and importing it takes 2 ms.
        with forks_wait():
            from otel_cbtop_exporter.encoding.line_protocol import (  # noqa: PLC0415
                LineProtocolEncoder,
            )

        lines = LineProtocolEncoder().encode(self.events)
        for refusal in lines.refused.values():
            raise EventError(refusal.detail)
        return b"\n".join(lines.bodies).decode()

    def to_json_lines(self) -> str:
        """Return the events as JSON, one object per line, without a final newline.

        Raises:
            EventError: An event has no field, a field that JSON cannot carry, or a time that is
                not an integer.
        """
        return b"\n".join(map(encode_event, Events.of(self.events))).decode()


class EventStreamer:
    """Sends events in batches; safe to use from several threads and in forked children.

        with EventStreamer("jsonlines") as streamer:
            streamer.send(event_from_sample("gpu.load", 0.93, {"host": "a"}))

    An event is accepted for good once its batch is complete or flushed: events that still wait for
    their batch are lost if the process is killed. When the interpreter exits, every streamer that
    is still open is shut down.

    Args:
        sink: `jsonlines`, `influxdb`, `kafka` or `console`, or a ready sink, which is closed
            at shutdown.
        batch_size: How many events are handed over together.
        retry: A `RetryConfig` or its options.
        spool: A `SpoolConfig` or its options.
        options: All other options of `ExporterConfig`, for example
            `influxdb={"url": ..., "bucket": ...}`; they override the environment.

    Raises:
        ConfigError: An option is unknown, its value is not allowed, or a ready sink lacks members.
        SinkError: The sink needs a setting or an extra that is missing.
    """

    def __init__(
        self,
        sink: Sink | str,
        batch_size: int = 100,
        *,
        retry: RetryConfig | Mapping[str, Any] | None = None,
        spool: SpoolConfig | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        given = {**options, "retry": retry, "spool": spool}
        if isinstance(sink, str):
            given["sink"] = sink
        else:
            check_sink(sink)
        config = configuration(None, given)
        make_sink = _sink_named(config) if isinstance(sink, str) else lambda: sink
        self._timeout_seconds = config.timeout_ms / 1_000
        self._batch_size = batch_size
        self._pipeline = Pipeline(make_sink(), config)
        self._shut_down = threading.Lock()  # acquired once, without waiting, and never released
        self.after_fork_in_child()
        _open.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    def after_fork_in_child(self) -> None:
        """Begin with an empty batch: the parent sends its own."""
        # A deque's operations are atomic. It needs no lock, for which a signal handler that sends
        # or shuts down could wait in vain.
        self._waiting: deque[Event] = deque()
        # Batches are handed over one after the other. Reentrant, for the same signal handlers.
        self._ordering = threading.RLock()

    def send(self, event: Event) -> bool:
        """Take one event; if it completes a batch, hand the batch over.

        Never raises.

        Returns:
            False if the streamer was shut down or the batch could not be taken; what is lost is
            counted.
        """
        if self._shut_down.locked():
            return self._pipeline.submit([event], 0.0)
        self._waiting.append(event)
        # Check again: after a shutdown in between, nobody else would hand the event over.
        if len(self._waiting) < self._batch_size and not self._shut_down.locked():
            return True
        # Not for ever: a signal handler may send while its thread has what another one waits for.
        if not self._ordering.acquire(timeout=self._timeout_seconds):
            return not self._shut_down.locked() or self._hand_over(0.0)  # or with the next batch
        try:
            return self._hand_over(self._timeout_seconds)
        finally:
            self._ordering.release()

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Deliver everything sent so far; False if some of it still waits after the timeout."""
        timeout_seconds = min(timeout_seconds, LONGEST_WAIT_SECONDS)
        deadline = time.monotonic() + timeout_seconds
        if not self._ordering.acquire(timeout=max(0.0, timeout_seconds)):
            return False
        try:
            left = deadline - time.monotonic()
            # Without a spool, a batch that gets no time would be dropped.
            if left <= 0 and self._waiting and not self._pipeline.is_spooled:
                return False
            taken = self._hand_over(left)
        finally:
            self._ordering.release()
        return self._pipeline.force_flush(max(0.0, deadline - time.monotonic())) and taken

    def shutdown(self, timeout_seconds: float = 10.0) -> None:
        """Deliver what the sink takes within the timeout, and close; later calls do nothing."""
        timeout_seconds = min(timeout_seconds, LONGEST_WAIT_SECONDS)
        deadline = time.monotonic() + timeout_seconds
        if not self._shut_down.acquire(blocking=False):
            return
        if self._ordering.acquire(timeout=max(0.0, timeout_seconds)):
            try:
                self._hand_over(deadline - time.monotonic())
            finally:
                self._ordering.release()
        self._pipeline.release(max(0.0, deadline - time.monotonic()))
        self._hand_over(0.0)  # counts events that got no turn because another batch hangs
        _open.discard(self)

    def health(self) -> SinkHealth:
        """Return the counters of this process and what waits for the sink."""
        return self._pipeline.health()

    def is_healthy(self) -> bool:
        """Whether the last write succeeded, or none was needed yet; False after shutdown."""
        health = self.health()
        return not self._shut_down.locked() and (health.connected or not health.write_errors)

    @property
    def pending_count(self) -> int:
        """How many events were sent and are not yet delivered."""
        return len(self._waiting) + self.health().events_spooled

    @property
    def events_written(self) -> int:
        """How many events the destination has acknowledged."""
        return self.health().events_written

    @staticmethod
    def generate_correlation_id() -> str:
        """Return `cbtop-<pid>-<n>`, which no other thread or running process here returns.

        Each container numbers its processes separately, often from 1. An application that runs in
        several containers should make its own ids, for example with `uuid.uuid4().hex`.
        """
        return f"cbtop-{os.getpid()}-{next(_correlation_ids)}"

    def _hand_over(self, timeout_seconds: float) -> bool:
        events: list[Event] = []
        try:
            # In one call, so that no signal handler can raise between taking and keeping an event.
            with suppress(IndexError):  # another thread, or a signal handler, was faster
                events.extend(starmap(self._waiting.popleft, repeat((), len(self._waiting))))
            return self._pipeline.submit(events, timeout_seconds)
        except BaseException:  # a signal handler raised; what was accepted must not be lost by it
            self._waiting.extendleft(reversed(events))
            raise


def _sink_named(config: ExporterConfig) -> Callable[[], Sink]:
    if len(config.sink) != 1 or config.sink == ("none",):
        raise ConfigError(f"an EventStreamer has one sink, got {', '.join(config.sink)}")
    return sink_factory(config.sink[0], config)


# Those that were not shut down. Kept until the process ends, because their events must be, too.
_open: set[EventStreamer] = set()


@atexit.register
def _shut_down_all() -> None:
    deadline = time.monotonic() + _EXIT_SECONDS
    # Those with most to send come last, and have what the others leave.
    in_order = sorted([*_open], key=lambda streamer: streamer.pending_count)
    for number, streamer in enumerate(in_order):
        # An equal share of what is left: one that hangs leaves the others theirs.
        left = max(0.0, deadline - time.monotonic())
        streamer.shutdown(left / (len(in_order) - number))


def _after_fork_in_child() -> None:
    for streamer in list(_open):
        streamer.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)

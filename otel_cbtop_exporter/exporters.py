"""The three exporters: map, submit to every sink's pipeline, answer the SDK."""

from __future__ import annotations

import logging
import os
import signal as signals
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from opentelemetry.sdk import metrics as sdk_metrics
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_cbtop_exporter._sdk import LogRecordExporter, LogRecordExportResult, ReadableLogRecord
from otel_cbtop_exporter.config import ExporterConfig, build, merged
from otel_cbtop_exporter.delivery.pipeline import Pipeline, acquire
from otel_cbtop_exporter.env import SignalName, options_from_environment
from otel_cbtop_exporter.errors import ConfigError, SinkError
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.health import HealthCounters, RateLimitedLog, SinkHealth, combined
from otel_cbtop_exporter.mapping.logs import LogMapper
from otel_cbtop_exporter.mapping.metrics import MetricMapper
from otel_cbtop_exporter.mapping.spans import SpanMapper
from otel_cbtop_exporter.sinks import sink_factory
from otel_cbtop_exporter.sinks.base import Sink

__all__ = ["CbtopLogRecordExporter", "CbtopMetricExporter", "CbtopSpanExporter"]

_logger = logging.getLogger("otel_cbtop_exporter")

_T = TypeVar("_T")

_DELTA = AggregationTemporality.DELTA
_DELTA_INSTRUMENTS: dict[str, tuple[type, ...]] = {
    "delta": (sdk_metrics.Counter, sdk_metrics.ObservableCounter, sdk_metrics.Histogram),
    "lowmemory": (sdk_metrics.Counter, sdk_metrics.Histogram),
    "cumulative": (),
}


class _Delivery:
    """What the three exporters have in common: a configuration, and a pipeline for each sink.

    Args:
        signal: Whose environment variables are read.
        sink: A ready sink, or names that win over the environment's.
        options: Given in code or in a declarative file; they win over the environment's.
    """

    def __init__(
        self, signal: SignalName, sink: Sink | str | Sequence[str] | None, options: dict[str, Any]
    ) -> None:
        ready = None if sink is None or isinstance(sink, str | Sequence) else sink
        given = options if ready is not None else {**options, "sink": sink}
        build(ExporterConfig, merged({}, given))  # blames the arguments alone
        self.config = build(ExporterConfig, merged(options_from_environment(signal), given))
        self._losses = _Losses()
        self._shut_down = threading.Lock()  # acquired once, without waiting, and never released
        if ready is not None:
            self._pipelines = [acquire(id(ready), partial(_same, ready), self.config)]
        else:
            self._pipelines = self._acquire_all(given)
        if self.config.exit_on_sigterm:
            _exit_on_sigterm()

    def _acquire_all(self, given: dict[str, Any]) -> list[Pipeline]:
        pipelines: list[Pipeline] = []
        for name in self.config.sink:
            if name == "none":
                continue
            try:
                factory = sink_factory(name, self.config)
            except SinkError as error:
                if given.get("sink") or given.get(name):
                    for pipeline in pipelines:
                        pipeline.release(0)
                    raise ConfigError(str(error)) from error
                # From the environment an exception would switch off other exporters and all
                # instrumentation with it.
                _logger.error("%s; until then this exporter drops what it is given", error)
                continue
            pipelines.append(acquire(_sharing_key(name, self.config), factory, self.config))
        return pipelines

    def export(
        self, map_batch: Callable[[Sequence[_T]], list[Event]], batch: Sequence[_T], seconds: float
    ) -> bool:
        """Map a batch and submit it to every sink; never raises."""
        deadline = time.monotonic() + seconds
        if self._shut_down.locked():
            self._lose("shutdown", len(batch), "what came after shutdown was dropped")
            return False
        events, ok = self._map(map_batch, batch)
        if not self._pipelines and self.config.sink != ("none",):
            self._lose("no_sink", len(events), "there is no usable sink, events were dropped")
            return False
        for pipeline in self._pipelines:
            ok = pipeline.submit(events, max(0.0, deadline - time.monotonic())) and ok
        return ok

    def _map(
        self, map_batch: Callable[[Sequence[_T]], list[Event]], batch: Sequence[_T]
    ) -> tuple[list[Event], bool]:
        try:
            return map_batch(batch), True
        # Mapping has a rule for everything that the SDK makes. What a foreign object does when
        # it is read is not ours to know, and must not cost its neighbours or the application.
        except Exception as error:  # noqa: BLE001
            if len(batch) == 1:
                word = type(error).__name__
                self._reject(word, 1, f"an item could not be mapped: {word}")
                return [], False
            mapped = [self._map(map_batch, [item])[0] for item in batch]
            return [event for events in mapped for event in events], False

    def on_mapping_loss(self, reason: str, what: str, events: int) -> None:
        """Count and log what mapping had to leave out: a field (no event lost) or events."""
        lost = f"{events} events" if events else "a field"
        self._reject(reason, events, f"{lost} of {what!r} left out: {reason}")

    def _lose(self, reason: str, events: int, message: str) -> None:
        losses = self._own_losses()
        losses.counters.dropped(reason, events)
        losses.log.log(logging.ERROR, reason, message)

    def _reject(self, reason: str, events: int, message: str) -> None:
        losses = self._own_losses()
        losses.counters.rejected(events)
        losses.log.log(logging.WARNING, reason, message)

    def _own_losses(self) -> _Losses:
        # Anew in a forked child, where another thread of the parent may have held the locks.
        if self._losses.pid != os.getpid():
            self._losses = _Losses()
        return self._losses

    def force_flush(self, timeout_millis: float) -> bool:
        """Push out what was accepted, within the time."""
        deadline = time.monotonic() + timeout_millis / 1000
        flushed = [
            pipeline.force_flush(max(0.0, deadline - time.monotonic()))
            for pipeline in self._pipelines
        ]
        return all(flushed)

    def shutdown(self, timeout_millis: float) -> None:
        """Release the pipelines, within the time; quiet the second time."""
        if not self._shut_down.acquire(blocking=False):
            return
        deadline = time.monotonic() + timeout_millis / 1000
        for pipeline in self._pipelines:
            pipeline.release(max(0.0, deadline - time.monotonic()))

    def health(self) -> SinkHealth:
        """Return the health of the sink, or of all sinks together."""
        health = combined([pipeline.health() for pipeline in self._pipelines])
        lost = self._own_losses().counters.snapshot()
        return msgspec.structs.replace(
            health,
            events_rejected=health.events_rejected + lost.events_rejected,
            events_dropped=dict(Counter(health.events_dropped) + Counter(lost.events_dropped)),
        )


class _Losses:
    """What was lost before it reached any pipeline, in one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.counters = HealthCounters()
        self.log = RateLimitedLog(_logger)


class _Exporter:
    """The methods that are the same for every signal."""

    _delivery: _Delivery

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Push out what was accepted; False if that did not end within the time."""
        return self._delivery.force_flush(timeout_millis)

    # timeout_millis has to be positional: BatchProcessor looks for its name before it hands
    # on what is left of its own time. PeriodicExportingMetricReader says timeout=.
    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Deliver what is left and close, within the time; further exports fail."""
        self._delivery.shutdown(kwargs.get("timeout", timeout_millis))

    def health(self) -> SinkHealth:
        """Return what has become of everything exported so far in this process."""
        return self._delivery.health()


class CbtopSpanExporter(_Exporter, SpanExporter):
    """Exports spans, their events and links to InfluxDB, Kafka or JSON Lines.

    Register it with a `BatchSpanProcessor`, or set `OTEL_TRACES_EXPORTER=cbtop`. Construction
    touches neither disk nor network. Safe to share between threads.

    Args:
        sink: `jsonlines` (the default), `influxdb`, `kafka`, `console`, several of them, or a
            ready `Sink`.
        **options: Options of `ExporterConfig`, groups as mappings, for example
            `kafka={"bootstrap_servers": "localhost:9092"}`. They win over environment
            variables.

    Raises:
        ConfigError: An argument is not allowed, or the sink named here lacks something.
    """

    def __init__(self, *, sink: Sink | str | Sequence[str] | None = None, **options: Any) -> None:
        self._delivery = _Delivery("traces", sink, options)
        mapping = self._delivery.config.mapping
        self._mapper = SpanMapper(mapping.resource_tags, mapping.span_tags, mapping.redact)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Deliver spans, or accept them into the spool; never raises."""
        seconds = self._delivery.config.timeout_ms / 1000
        ok = self._delivery.export(self._mapper.map, spans, seconds)
        return SpanExportResult.SUCCESS if ok else SpanExportResult.FAILURE


class CbtopLogRecordExporter(_Exporter, LogRecordExporter):
    """Exports log records; everything else is as with `CbtopSpanExporter`.

    Register it with a `BatchLogRecordProcessor`, or set `OTEL_LOGS_EXPORTER=cbtop`.

    Args:
        sink: As with `CbtopSpanExporter`.
        **options: As with `CbtopSpanExporter`.

    Raises:
        ConfigError: As with `CbtopSpanExporter`.
    """

    def __init__(self, *, sink: Sink | str | Sequence[str] | None = None, **options: Any) -> None:
        self._delivery = _Delivery("logs", sink, options)
        mapping = self._delivery.config.mapping
        self._mapper = LogMapper(mapping.resource_tags, mapping.redact)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Deliver log records, or accept them into the spool; never raises."""
        seconds = self._delivery.config.timeout_ms / 1000
        ok = self._delivery.export(self._mapper.map, batch, seconds)
        return LogRecordExportResult.SUCCESS if ok else LogRecordExportResult.FAILURE


class CbtopMetricExporter(_Exporter, MetricExporter):
    """Exports metrics and exemplars; everything else is as with `CbtopSpanExporter`.

    Register it with a `PeriodicExportingMetricReader`, or set `OTEL_METRICS_EXPORTER=cbtop`.
    Prefers delta temporality: delta points add up to the truth over restarts and processes,
    and one that is sent twice overwrites itself.

    Args:
        sink: As with `CbtopSpanExporter`.
        **options: As with `CbtopSpanExporter`; `temporality_preference` and
            `default_histogram_aggregation` are for this signal.

    Raises:
        ConfigError: As with `CbtopSpanExporter`.
    """

    def __init__(self, *, sink: Sink | str | Sequence[str] | None = None, **options: Any) -> None:
        self._delivery = _Delivery("metrics", sink, options)
        config = self._delivery.config
        delta = _DELTA_INSTRUMENTS[config.temporality_preference]
        is_exponential = config.default_histogram_aggregation.startswith("base2_exponential")
        super().__init__(
            preferred_temporality=dict.fromkeys(delta, _DELTA),
            preferred_aggregation=(
                {sdk_metrics.Histogram: ExponentialBucketHistogramAggregation()}
                if is_exponential
                else {}
            ),
        )
        mapping = config.mapping
        self._mapper = MetricMapper(
            mapping.resource_tags,
            mapping.exemplars,
            mapping.redact,
            self._delivery.on_mapping_loss,
        )

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any
    ) -> MetricExportResult:
        """Deliver data points, or accept them into the spool; never raises."""
        millis = min(timeout_millis, self._delivery.config.timeout_ms)
        ok = self._delivery.export(self._mapper.map, metrics_data.resource_metrics, millis / 1000)
        return MetricExportResult.SUCCESS if ok else MetricExportResult.FAILURE


def _same(sink: Sink) -> Sink:
    return sink


def _sharing_key(name: str, config: ExporterConfig) -> bytes:
    """Return what is equal for exporters that can share a pipeline; stays in memory."""
    return msgspec.msgpack.encode(
        (
            name,
            getattr(config, name),
            config.delivery,
            config.retry,
            config.spool,
            config.max_batch_events,
            config.max_batch_bytes,
        )
    )


def _exit_on_sigterm() -> None:
    """Exit cleanly where SIGTERM would end the process at once, with its queues."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signals.getsignal(signals.SIGTERM) is signals.SIG_DFL:
        signals.signal(signals.SIGTERM, lambda *_: sys.exit(128 + signals.SIGTERM))

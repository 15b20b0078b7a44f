"""The three exporters: map, submit to every sink's pipeline, answer the SDK.

Each imports its own mapping when it is made, so that a process that exports one signal starts
faster and needs less memory. Forks wait meanwhile: see `forks_wait`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk import metrics as sdk_metrics
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)
from opentelemetry.sdk.metrics.view import Aggregation, ExponentialBucketHistogramAggregation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_cbtop_exporter._sdk import LogRecordExporter, LogRecordExportResult, ReadableLogRecord
from otel_cbtop_exporter.errors import ConfigError
from otel_cbtop_exporter.fork_lock import forks_wait
from otel_cbtop_exporter.health import SinkHealth
from otel_cbtop_exporter.mapping.metric_pieces import first_name, pieces_of
from otel_cbtop_exporter.signal_delivery import Pieces, SignalDelivery
from otel_cbtop_exporter.sinks.base import Sink

__all__ = ["CbtopLogRecordExporter", "CbtopMetricExporter", "CbtopSpanExporter"]

_DELTA = AggregationTemporality.DELTA
_DELTA_INSTRUMENTS: dict[str, tuple[type, ...]] = {
    "delta": (sdk_metrics.Counter, sdk_metrics.ObservableCounter, sdk_metrics.Histogram),
    "lowmemory": (sdk_metrics.Counter, sdk_metrics.Histogram),
    "cumulative": (),
}


# The SDK hands over all measurements of the application in one batch, so a data point that cannot
# be mapped must not cost the others.
_METRIC_PIECES = Pieces(pieces_of, lambda batch: f"a data point of {first_name(batch)}")


class _Exporter:
    """The methods that are the same for every signal."""

    _delivery: SignalDelivery

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Deliver what was accepted; False if that did not finish within the timeout."""
        return self._delivery.force_flush(timeout_millis)

    # timeout_millis must not be keyword-only: BatchProcessor looks for it among the positional
    # parameters, to pass on what is left of its own timeout. PeriodicExportingMetricReader passes
    # timeout=.
    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Deliver what is left and close, within the timeout; further exports fail."""
        self._delivery.shutdown(kwargs.get("timeout", timeout_millis))

    def health(self) -> SinkHealth:
        """Return what has become of everything exported so far in this process.

        Exporters that write to one sink with the same options share the sink and its counters.
        """
        return self._delivery.health()


class CbtopSpanExporter(_Exporter, SpanExporter):
    """Exports spans, their events and links to InfluxDB, Kafka or JSON Lines.

    Register it with a `BatchSpanProcessor`, or set `OTEL_TRACES_EXPORTER=cbtop`. Construction
    touches neither disk nor network. Safe to share between threads.

    Args:
        sink: `jsonlines` (the default), `influxdb`, `kafka`, `console`, several of them, or a
            ready `Sink`.
        **options: Options of `ExporterConfig`, with groups as mappings, for example
            `kafka={"bootstrap_servers": "localhost:9092"}`. They override environment
            variables.

    Raises:
        ConfigError: An argument is not allowed, or a sink named here lacks something it needs.
    """

    def __init__(self, *, sink: Sink | str | Sequence[str] | None = None, **options: Any) -> None:
        with forks_wait():
            from otel_cbtop_exporter.mapping.spans import SpanMapper

        self._delivery = SignalDelivery("traces", sink, options)
        config = self._delivery.config
        mapping = config.mapping
        self._mapper = SpanMapper(config.all_resource_tags, mapping.span_tags, mapping.redact)

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
        with forks_wait():
            from otel_cbtop_exporter.mapping.logs import LogMapper

        self._delivery = SignalDelivery("logs", sink, options)
        config = self._delivery.config
        self._mapper = LogMapper(config.all_resource_tags, config.mapping.redact)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Deliver log records, or accept them into the spool; never raises."""
        seconds = self._delivery.config.timeout_ms / 1000
        ok = self._delivery.export(self._mapper.map, batch, seconds)
        return LogRecordExportResult.SUCCESS if ok else LogRecordExportResult.FAILURE


class CbtopMetricExporter(_Exporter, MetricExporter):
    """Exports metrics and exemplars; everything else is as with `CbtopSpanExporter`.

    Register it with a `PeriodicExportingMetricReader`, or set `OTEL_METRICS_EXPORTER=cbtop`.
    Prefers delta temporality: delta points add up correctly across restarts and processes, and
    one that is sent twice overwrites itself.

    Args:
        sink: As with `CbtopSpanExporter`.
        preferred_temporality: By instrument class; overrides `temporality_preference`.
        preferred_aggregation: By instrument class; overrides `default_histogram_aggregation`.
        **options: As with `CbtopSpanExporter`.

    Raises:
        ConfigError: As with `CbtopSpanExporter`; or a preference is not a mapping.
    """

    def __init__(
        self,
        *,
        sink: Sink | str | Sequence[str] | None = None,
        preferred_temporality: Mapping[type, AggregationTemporality] | None = None,
        preferred_aggregation: Mapping[type, Aggregation] | None = None,
        **options: Any,
    ) -> None:
        with forks_wait():
            from otel_cbtop_exporter.mapping.metrics import MetricMapper

        # Before the delivery, whose pipelines nobody would release.
        own_temporality = _by_class("preferred_temporality", preferred_temporality)
        own_aggregation = _by_class("preferred_aggregation", preferred_aggregation)
        self._delivery = SignalDelivery("metrics", sink, options)
        config = self._delivery.config
        temporality = dict.fromkeys(_DELTA_INSTRUMENTS[config.temporality_preference], _DELTA)
        aggregation: dict[type, Aggregation] = {}
        if config.default_histogram_aggregation.startswith("base2_exponential"):
            aggregation[sdk_metrics.Histogram] = ExponentialBucketHistogramAggregation()
        super().__init__(
            preferred_temporality=temporality | own_temporality,
            preferred_aggregation=aggregation | own_aggregation,
        )
        self._mapper = MetricMapper(
            config.all_resource_tags,
            config.mapping.exemplars,
            config.mapping.redact,
            self._delivery.on_mapping_loss,
        )

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any
    ) -> MetricExportResult:
        """Deliver data points, or accept them into the spool; never raises."""
        millis = min(timeout_millis, self._delivery.config.timeout_ms)
        ok = self._delivery.export(
            self._mapper.map, metrics_data.resource_metrics, millis / 1000, _METRIC_PIECES
        )
        return MetricExportResult.SUCCESS if ok else MetricExportResult.FAILURE


def _by_class(name: str, given: Any) -> dict[type, Any]:
    try:
        by_class = {} if given is None else dict(given)
    except (TypeError, ValueError):
        word = type(given).__name__
        why = f"{name} is a {word}, allowed is a mapping of instrument classes"
        raise ConfigError(why) from None
    for key in by_class:
        if not isinstance(key, type):
            raise ConfigError(f"{name} has the key {key!r}, allowed are instrument classes")
    return by_class

"""Exports OpenTelemetry data to InfluxDB, Kafka and JSON Lines, without a Collector.

Everything public is here. Importing the package starts nothing, opens nothing, and imports no
client library.
"""

from otel_cbtop_exporter.config import ExporterConfig, RetryConfig
from otel_cbtop_exporter.errors import CbtopError, ConfigError, EventError, SinkError
from otel_cbtop_exporter.events import (
    SCHEMA_VERSION,
    Event,
    MetricInfo,
    decode_event,
    event_from_sample,
)
from otel_cbtop_exporter.exporters import (
    CbtopLogRecordExporter,
    CbtopMetricExporter,
    CbtopSpanExporter,
)
from otel_cbtop_exporter.health import SinkHealth
from otel_cbtop_exporter.sinks.base import Encoded, Record, Rejection, Sink, WriteResult
from otel_cbtop_exporter.streamer import EventBatch, EventStreamer
from otel_cbtop_exporter.whole_process import force_flush, process_health

__all__ = [
    "SCHEMA_VERSION",
    "CbtopError",
    "CbtopLogRecordExporter",
    "CbtopMetricExporter",
    "CbtopSpanExporter",
    "ConfigError",
    "Encoded",
    "Event",
    "EventBatch",
    "EventError",
    "EventStreamer",
    "ExporterConfig",
    "MetricInfo",
    "Record",
    "Rejection",
    "RetryConfig",
    "Sink",
    "SinkError",
    "SinkHealth",
    "WriteResult",
    "decode_event",
    "event_from_sample",
    "force_flush",
    "process_health",
]

"""This package and its alternatives, each as a plain function of one batch."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.exporter.otlp.json.file import FileMetricExporter, FileSpanExporter
from opentelemetry.exporter.otlp.json.file._log_exporter import FileLogExporter
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics.export import MetricsData

from otel_cbtop_exporter.config import InfluxDBConfig, KafkaConfig, MappingConfig
from otel_cbtop_exporter.events import Event
from otel_cbtop_exporter.mapping.logs import LogMapper
from otel_cbtop_exporter.mapping.metrics import MetricMapper
from otel_cbtop_exporter.mapping.spans import SpanMapper
from otel_cbtop_exporter.sinks.base import Record
from otel_cbtop_exporter.sinks.influxdb import InfluxDBSink
from otel_cbtop_exporter.sinks.kafka_records import RecordMaker
from otel_cbtop_exporter.sinks.lines import encode_lines

_MAPPING = MappingConfig()


def span_mapper() -> SpanMapper:
    return SpanMapper(_MAPPING.resource_tags, _MAPPING.span_tags, ())


def log_mapper() -> LogMapper:
    return LogMapper(_MAPPING.resource_tags, ())


def metric_mapper() -> MetricMapper:
    return MetricMapper(_MAPPING.resource_tags, "none", (), _no_loss)


def _no_loss(reason: str, what: str, events: int) -> None:
    raise AssertionError((reason, what, events))


def influxdb_sink(url: str = "http://localhost:8086", **options: Any) -> InfluxDBSink:
    return InfluxDBSink(InfluxDBConfig(url=url, bucket=options.pop("bucket", "b"), **options))


def json_records(events: Sequence[Event]) -> list[Record]:
    """Encode as the JSON Lines sink does."""
    encoded = encode_lines(events)
    assert not encoded.rejected
    return encoded.records


def line_records(sink: InfluxDBSink, events: Sequence[Event]) -> list[Record]:
    """Encode as the InfluxDB sink does, always as if the points had not been seen before."""
    sink._encoder.after_fork_in_child()
    encoded = sink.encode(events)
    assert not encoded.rejected
    return encoded.records


def kafka_records() -> Callable[[Sequence[Event]], list[Record]]:
    """Return a function that encodes as the Kafka sink does."""
    maker = RecordMaker(KafkaConfig())
    return lambda events: maker.encode(events).records


def otlp_spans(spans: Any) -> bytes:
    return encode_spans(spans).SerializeToString()


def otlp_logs(records: Any) -> bytes:
    return encode_logs(records).SerializeToString()


def otlp_metrics(resource_metrics: Any) -> bytes:
    return encode_metrics(MetricsData(resource_metrics)).SerializeToString()


def otlp_json_spans(spans: Any) -> str:
    stream = io.StringIO()
    FileSpanExporter(stream=stream).export(spans)
    return stream.getvalue()


def otlp_json_logs(records: Any) -> str:
    stream = io.StringIO()
    FileLogExporter(stream=stream).export(records)
    return stream.getvalue()


def otlp_json_metrics(resource_metrics: Any) -> str:
    stream = io.StringIO()
    FileMetricExporter(stream=stream).export(MetricsData(resource_metrics))
    return stream.getvalue()


def proto_value(value: Any) -> Any:
    """Return the value in a protobuf `AnyValue` of a plain type."""
    return getattr(value, value.WhichOneof("value"))


def json_value(value: Any) -> Any:
    """Return the value in an `AnyValue` of a plain type in OTLP's JSON."""
    ((kind, plain),) = value.items()
    return int(plain) if kind == "intValue" else plain

"""The exporters compared in separate processes, by name; each is imported only when asked for."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult


class DiscardingExporter(SpanExporter):
    """Does nothing, so that only the cost of batching is left."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        return SpanExportResult.SUCCESS


class LeastExporter(SpanExporter):
    """Posts the attributes of spans and nothing else: the least that delivery can cost.

    It sends no ids, names, times or tags, and has no spool, no retries and no thread.
    """

    def __init__(self, url: str) -> None:
        import msgspec
        import urllib3

        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._post = urllib3.connection_from_url(url).urlopen

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = self._encode_lines([span._attributes._dict for span in spans])
        body = zlib.compress(lines, 1)
        self._post("POST", "/", body, {"Content-Encoding": "deflate"})
        return SpanExportResult.SUCCESS


def make_exporter(name: str, url: str, folder: str) -> SpanExporter:
    """Make an exporter with its defaults.

    Args:
        name: `discard`, `least`, `otlp`, or a sink of ours; `influxdb` and
            `spooled_jsonlines` have a spool on disk.
        url: The address of a receiver, a Kafka broker, or an InfluxDB whose token and
            organization are in the environment.
        folder: The folder for files.
    """
    if name == "discard":
        return DiscardingExporter()
    if name == "least":
        return LeastExporter(url)
    if name == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=f"{url}/v1/traces")
    from otel_cbtop_exporter import CbtopSpanExporter

    if name == "kafka":
        return CbtopSpanExporter(sink="kafka", kafka={"bootstrap_servers": url})
    lines = {"path": f"{folder}/events.jsonl"}
    if name == "jsonlines":
        return CbtopSpanExporter(jsonlines=lines)
    spool = {"path": f"{folder}/spool"}
    if name == "spooled_jsonlines":
        return CbtopSpanExporter(jsonlines=lines, spool=spool)
    return CbtopSpanExporter(sink="influxdb", influxdb={"url": url, "bucket": "bench"}, spool=spool)

"""InfluxDB, end to end on a real server, against the client's batching API with `Point`."""

from __future__ import annotations

from collections.abc import Sequence

from influxdb_client import InfluxDBClient
from opentelemetry.sdk.trace import ReadableSpan

from benchmarks import data, points
from benchmarks.measure import Report, Scale, cheaper, interleaved
from benchmarks.processes import folder
from otel_cbtop_exporter import CbtopSpanExporter
from tests.servers.influxdb import InfluxDB

_Batches = Sequence[list[ReadableSpan]]


def run(scale: Scale) -> Report:
    count = scale.of(10, 1)
    with folder() as path:
        server = InfluxDB.start(path / "influxdb", 2)
        try:
            bucket, peers_bucket = server.new_bucket(), server.new_bucket()
            ours = CbtopSpanExporter(sink="influxdb", influxdb=server.options(bucket))
            client = InfluxDBClient(server.url, server.token, org=server.org)

            def send(batches: _Batches) -> None:
                for spans in batches:
                    ours.export(spans)
                assert ours.force_flush()

            def peer_send(batches: _Batches) -> None:
                with client.write_api() as api:  # batches of 1,000 on a thread, flushed at the end
                    for spans in batches:
                        api.write(peers_bucket, record=list(points.span_points(spans)))

            batches = [data.spans() for _ in range(count)]
            written = sum(1 + len(span.events) for spans in batches for span in spans)
            timings = interleaved(
                {"ours": send, "peer": peer_send},
                lambda: [data.spans() for _ in range(count)],
                items=written,
                scale=scale.of_rounds(12),
            )
            found = [_counted(server, name) for name in (bucket, peers_bucket)]
            assert found == [ours.health().events_written] * 2, found
            ours.shutdown()
            client.close()
        finally:
            server.close()
    mine, theirs = timings["ours"], timings["peer"]
    return Report(
        "InfluxDB, end to end on a real server",
        rows=[
            cheaper(
                "points to InfluxDB: map, encode, spool in memory, post",
                "batching WriteApi with Point",
                mine,
                theirs,
                gate=8,
                goal=12,
            )
        ],
        notes=[
            (
                f"Points a CPU second: {mine.rate} against {theirs.rate}, and the server has as "
                f"many of both. Ours is gzip, the client's default is not."
            )
        ],
    )


def _counted(server: InfluxDB, bucket: str) -> int:
    return int(
        server.count(bucket, "spans", "duration_ns")
        + server.count(bucket, "span_events", "span_id")
    )

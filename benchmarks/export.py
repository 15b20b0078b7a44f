"""How long `export()` holds the SDK's thread: a spool on disk against a local OTLP receiver."""

from __future__ import annotations

import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from benchmarks import data, peers, points
from benchmarks.measure import Report, Scale, cheaper, interleaved
from benchmarks.processes import folder, receiver
from otel_cbtop_exporter import CbtopSpanExporter
from otel_cbtop_exporter.delivery.spool_rows import pack

# The goals of `spans.py` and `spool.py`.
_LINES_GOAL = 18
_SPOOL_GOAL = 0.4


def run(scale: Scale) -> Report:
    with receiver() as server, folder() as path:
        ours = CbtopSpanExporter(
            sink="influxdb",
            influxdb={"url": server.url, "bucket": "b"},
            spool={"path": str(path / "spool")},
        )
        otlp = OTLPSpanExporter(endpoint=server.otlp_traces)
        wall = interleaved(
            {"ours": ours.export, "otlp": otlp.export},
            data.spans,
            items=1,
            scale=scale,
            clock=time.perf_counter,
            settle=ours.force_flush,
        )
        cpu = interleaved(
            {"ours": lambda spans: (ours.export(spans), ours.force_flush()), "otlp": otlp.export},
            data.spans,
            items=1,
            scale=scale,
        )
        mapper = peers.span_mapper()
        sink, other = peers.influxdb_sink(), peers.influxdb_sink()  # so that each sees a span once
        parts = interleaved(
            {
                "map": mapper.map,
                "encode": lambda spans: sink.encode(mapper.map(spans)),
                "pack": lambda spans: pack(other.encode(mapper.map(spans)).records, 0),
                "point": lambda spans: points.lines(points.span_points(spans)),
            },
            data.spans,
            items=1,
            scale=scale,
            clock=time.perf_counter,
        )
        health = ours.health()
        assert health.events_written
        assert (health.events_spooled, health.write_errors) == (0, 0)
        ours.shutdown()
        otlp.shutdown()
    goal_us = parts["point"].best_us / _LINES_GOAL * (1 + _SPOOL_GOAL)
    return Report(
        "`export()` of 512 spans, wall time",
        rows=[
            cheaper(
                "export() of 512 spans, spool on disk",
                "OTLPSpanExporter (HTTP) to a local receiver",
                wall["ours"],
                wall["otlp"],
                gate=8,
                goal=15,
            )
        ],
        notes=[
            (
                f"What it is made of, each with those before: mapping {parts['map']}, encoding "
                f"{parts['encode']}, packing and compression {parts['pack']}; the rest is the "
                "transaction, the drain thread that begins, and memory: the parts were measured on "
                "spans that the processor's caches hold, `export()` on such as "
                "`BatchSpanProcessor` hands over, which they do not."
            ),
            (
                f"What bounds it: if mapping, encoding and the spool took what their own goals "
                f"allow (an {_LINES_GOAL}th of influxdb_client.Point, and {_SPOOL_GOAL:.0%} of "
                f"that), they would take {goal_us / 1e3:.2f} ms together, without the rest: "
                f"{wall['otlp'].best_us / goal_us:.1f} times less than OTLP."
            ),
            (
                f"CPU of the process until the receiver has the batch, compression and the drain "
                f"thread included: {cpu['ours']} against {cpu['otlp']}. Ours is gzip by default, "
                "OTLP is not."
            ),
        ],
    )

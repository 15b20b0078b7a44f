"""Metric points: mapped and encoded, warm and cold, against OTLP and points made by hand.

Warm: mapper and sink have seen the series before, as they have from the second collection on.
Cold: each collection has a new mapper and a new sink.
"""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

from line_protocol_parser import parse_line
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData

from benchmarks import data, peers, points
from benchmarks.measure import Report, Scale, cheaper, interleaved


def run(scale: Scale) -> Report:
    _same_content()
    json_mapper, line_mapper = peers.metric_mapper(), peers.metric_mapper()
    sink = peers.influxdb_sink()
    timings = interleaved(
        {
            "json": lambda batch: peers.json_records(json_mapper.map(batch)),
            "line": lambda batch: peers.line_records(sink, line_mapper.map(batch)),
            "map": line_mapper.map,
            "cold_json": lambda batch: peers.json_records(peers.metric_mapper().map(batch)),
            "cold_line": lambda batch: peers.line_records(
                peers.influxdb_sink(), peers.metric_mapper().map(batch)
            ),
            "otlp": peers.otlp_metrics,
            "otlp_json": peers.otlp_json_metrics,
            "point": lambda batch: points.lines(points.metric_points(batch)),
        },
        data.collector(),
        items=data.SERIES,
        scale=scale,
        passes=3,
    )
    collect = data.collector()
    busy = interleaved(
        {
            "json": lambda batch: peers.json_records(json_mapper.map(batch)),
            "line": lambda batch: peers.line_records(sink, line_mapper.map(batch)),
            "otlp": peers.otlp_metrics,
        },
        lambda: data.busy(collect()),
        items=data.SERIES,
        scale=scale.of_rounds(30),
        passes=3,
    )
    otlp = timings["otlp"]
    rows = [
        cheaper(
            f"metric points to {form}, {state}",
            "OTLP proto, encode and serialize",
            timings[name],
            otlp,
            gate=gate,
            goal=goal,
        )
        for name, form, state, gate, goal in (
            ("json", "JSON events", "warm", 15, 25),
            ("cold_json", "JSON events", "cold", 3, 4),
            ("line", "line protocol", "warm", 9, 15),
            ("cold_line", "line protocol", "cold", 1.6, 2.2),
        )
    ]
    by_hand, text = timings["point"], timings["otlp_json"]
    times_by_hand = by_hand.best_us / timings["line"].best_us
    times_text = text.best_us / timings["json"].best_us
    return Report(
        "Metric points, CPU per point",
        rows=rows,
        notes=[
            (
                f"{data.SERIES} series with four attributes, each recorded on between two "
                "collections, a third each sums, gauges and histograms of 15 bounds, delta. "
                f"Mapping alone takes {timings['map']} a point, warm."
            ),
            (
                f"Warm, line protocol is {times_by_hand:.0f} times cheaper than "
                f"influxdb_client.Point with the same content ({by_hand}), JSON "
                f"{times_text:.0f} times cheaper than the OTLP JSON file exporter ({text})."
            ),
            (
                "Running sums below 256 are added up all points at once. Where histograms have "
                f"thousands of measurements between two collections, JSON takes {busy['json']}, "
                f"line protocol {busy['line']} and OTLP {busy['otlp']} a point, warm."
            ),
        ],
    )


def _same_content() -> None:
    """Check that every peer encodes the same content for the same points, warm ones too."""
    collect, mapper, sink = data.collector(300), peers.metric_mapper(), peers.influxdb_sink()
    for _ in range(2):
        batch = collect()
        events = [json.loads(record.body) for record in peers.json_records(mapper.map(batch))]
        ours = [
            (event["measurement"], event["timestamp_ns"], event["fields"], _own_tags(event["tags"]))
            for event in events
        ]
        proto = MetricsData.FromString(peers.otlp_metrics(batch))
        assert ours == [
            point
            for resource in proto.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in _proto_points(metric)
        ]
        text = json.loads(peers.otlp_json_metrics(batch))
        named = [
            metric["name"]
            for resource in text["resourceMetrics"]
            for scope in resource["scopeMetrics"]
            for metric in scope["metrics"]
            for kind in ("sum", "gauge", "histogram")
            for _ in metric.get(kind, {}).get("dataPoints", ())
        ]
        assert named == [event["measurement"] for event in events]
        lines = [record.body.decode() for record in peers.line_records(sink, mapper.map(batch))]
        by_hand = points.lines(points.metric_points(batch))
        assert list(map(parse_line, lines)) == list(map(parse_line, by_hand))


def _own_tags(tags: dict[str, str]) -> dict[str, str]:
    ours = (*data.RESOURCE.attributes, "otel.scope.name", "otel.scope.version")
    return {key: text for key, text in tags.items() if key not in ours}


def _proto_points(metric: Any) -> Any:
    kind = metric.WhichOneof("data")
    for point in getattr(metric, kind).data_points:
        if kind == "histogram":
            bounds = [repr(bound).removesuffix(".0") for bound in point.explicit_bounds]
            counts = accumulate(point.bucket_counts)
            fields = {
                **{f"le_{b}": count for b, count in zip([*bounds, "inf"], counts, strict=True)},
                "count": point.count,
                "sum": point.sum,
                "min": point.min,
                "max": point.max,
            }
        else:
            fields = {"value": getattr(point, point.WhichOneof("value"))}
        if kind != "gauge":
            fields["start_time_ns"] = point.start_time_unix_nano
        tags = {pair.key: str(peers.proto_value(pair.value)) for pair in point.attributes}
        yield metric.name, point.time_unix_nano, fields, tags

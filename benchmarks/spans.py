"""Spans: mapped and encoded, against OTLP and against points made by hand."""

from __future__ import annotations

import json
from operator import itemgetter

from line_protocol_parser import parse_line
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from benchmarks import data, peers, points
from benchmarks.json_alone import json_alone
from benchmarks.measure import Report, Scale, cheaper, interleaved
from otel_cbtop_exporter._sdk import SpanParts, read_spans
from otel_cbtop_exporter.encoding.json_values import encoder

_ATTRIBUTES = SpanParts._fields.index("attributes")


def run(scale: Scale) -> Report:
    _same_content()
    mapper, sink = peers.span_mapper(), peers.influxdb_sink()
    timings = interleaved(
        {
            "json": lambda spans: peers.json_records(mapper.map(spans)),
            "line": lambda spans: peers.line_records(sink, mapper.map(spans)),
            "map": mapper.map,
            "alone": json_alone(),
            "attributes": lambda spans: encoder.encode_lines(
                [parts[_ATTRIBUTES] for parts in read_spans(spans)]
            ),
            "otlp": peers.otlp_spans,
            "otlp_json": peers.otlp_json_spans,
            "point": lambda spans: points.lines(points.span_points(spans)),
        },
        data.spans,
        items=data.BATCH,
        scale=scale,
        passes=3,
    )
    ours, lines, alone = timings["json"], timings["line"], timings["alone"]
    return Report(
        "Spans, CPU per span",
        rows=[
            cheaper(
                "spans to JSON events, map and encode",
                "OTLP proto, encode and serialize",
                ours,
                timings["otlp"],
                gate=15,
                goal=22,
            ),
            cheaper(
                "spans to JSON events, map and encode",
                "OTLP JSON file exporter",
                ours,
                timings["otlp_json"],
                gate=20,
                goal=30,
            ),
            cheaper(
                "spans to line protocol, map and encode",
                "influxdb_client.Point, same content",
                lines,
                timings["point"],
                gate=14,
                goal=18,
            ),
        ],
        notes=[
            (
                f"Spans with 10 attributes, one in twenty with an exception. Mapping alone takes "
                f"{timings['map']} a span. Line protocol is "
                f"{timings['otlp'].best_us / lines.best_us:.1f} times cheaper than OTLP proto."
            ),
            (
                f"Reading spans and encoding their attributes as they are, without an id, a tag or "
                f"a check, takes {timings['attributes']} of it."
            ),
            (
                "What bounds JSON: a loop that makes the same lines and can do nothing else, no "
                "redaction, no line protocol, nothing unusual, but checks what it has to, takes "
                f"{alone}: {timings['otlp'].best_us / alone.best_us:.1f} times cheaper than OTLP "
                f"proto, {timings['otlp_json'].best_us / alone.best_us:.1f} times cheaper than the "
                "OTLP JSON file exporter."
            ),
        ],
    )


def _same_content() -> None:
    """Check that every peer encodes the same content for the same spans."""
    spans = data.spans(100)
    mapper = peers.span_mapper()
    bodies = [record.body for record in peers.json_records(mapper.map(spans))]
    assert sorted(bodies) == sorted(json_alone()(spans).splitlines())
    ours = list(map(json.loads, bodies))
    ours = [event for event in ours if event["measurement"] == "spans"]
    proto = TracesData.FromString(peers.otlp_spans(spans))
    binary = [
        (
            span.trace_id.hex(),
            span.span_id.hex(),
            span.name,
            span.start_time_unix_nano,
            {pair.key: peers.proto_value(pair.value) for pair in span.attributes},
        )
        for resource in proto.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    text = [
        (
            span["traceId"],
            span["spanId"],
            span["name"],
            int(span["startTimeUnixNano"]),
            {pair["key"]: peers.json_value(pair["value"]) for pair in span["attributes"]},
        )
        for resource in json.loads(peers.otlp_json_spans(spans))["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    mine = [
        (
            event["correlation_id"],
            event["fields"]["span_id"],
            event["tags"]["span.name"],
            event["timestamp_ns"],
            event["attributes"],
        )
        for event in ours
    ]
    # Our events come in another order.
    mine, binary, text = (sorted(spans, key=itemgetter(1)) for spans in (mine, binary, text))
    assert mine == binary == text
    lines = [
        record.body.decode()
        for record in peers.line_records(peers.influxdb_sink(), mapper.map(spans))
    ]
    by_hand = points.lines(points.span_points(spans))
    assert sorted(map(_parsed, lines)) == sorted(map(_parsed, by_hand))


def _parsed(line: str) -> str:
    return json.dumps(parse_line(line), sort_keys=True)

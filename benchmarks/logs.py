"""Log records: mapped and encoded, against OTLP."""

from __future__ import annotations

import json
from typing import Any

from line_protocol_parser import parse_line
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData

from benchmarks import data, peers
from benchmarks.measure import Report, Scale, cheaper, interleaved


def run(scale: Scale) -> Report:
    _same_content()
    mapper, sink = peers.log_mapper(), peers.influxdb_sink()
    timings = interleaved(
        {
            "json": lambda records: peers.json_records(mapper.map(records)),
            "line": lambda records: peers.line_records(sink, mapper.map(records)),
            "map": mapper.map,
            "otlp": peers.otlp_logs,
            "otlp_json": peers.otlp_json_logs,
        },
        data.log_records,
        items=data.BATCH,
        scale=scale,
        passes=3,
    )
    ours, otlp, text = timings["json"], timings["otlp"], timings["otlp_json"]
    against = "OTLP proto, encode and serialize"
    return Report(
        "Log records, CPU per record",
        rows=[
            cheaper("log records to JSON events", against, ours, otlp, gate=11, goal=16),
            cheaper(
                "log records to line protocol", against, timings["line"], otlp, gate=9, goal=13
            ),
        ],
        notes=[
            (
                f"Records with a text, four attributes and a trace. Mapping alone takes "
                f"{timings['map']} a record. To JSON "
                f"{text.best_us / ours.best_us:.0f} times cheaper than the OTLP JSON file exporter "
                f"({text})."
            )
        ],
    )


def _same_content() -> None:
    """Check that every peer encodes the same content for the same records."""
    records = data.log_records(100)
    mapper = peers.log_mapper()
    events = [json.loads(record.body) for record in peers.json_records(mapper.map(records))]
    ours = [
        (
            event["timestamp_ns"],
            event["fields"]["observed_timestamp_ns"],
            event["fields"]["severity_number"],
            event["tags"]["severity_text"],
            event["fields"]["body"],
            event["correlation_id"],
            event["fields"]["span_id"],
            event["attributes"],
        )
        for event in events
    ]
    proto = LogsData.FromString(peers.otlp_logs(records))
    binary = [
        (
            record.time_unix_nano,
            record.observed_time_unix_nano,
            record.severity_number,
            record.severity_text,
            record.body.string_value,
            record.trace_id.hex(),
            record.span_id.hex(),
            {pair.key: peers.proto_value(pair.value) for pair in record.attributes},
        )
        for resource in proto.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]
    text = [
        (
            int(record["timeUnixNano"]),
            int(record["observedTimeUnixNano"]),
            record["severityNumber"],
            record["severityText"],
            record["body"]["stringValue"],
            record["traceId"],
            record["spanId"],
            {pair["key"]: peers.json_value(pair["value"]) for pair in record["attributes"]},
        )
        for resource in json.loads(peers.otlp_json_logs(records))["resourceLogs"]
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
    ]
    assert ours == binary == text
    encoded = peers.line_records(peers.influxdb_sink(), mapper.map(records))
    assert ours == [_of_line(record.body.decode()) for record in encoded]


def _of_line(line: str) -> tuple[Any, ...]:
    point = parse_line(line)
    fields = point["fields"]
    return (
        point["time"],
        fields["observed_timestamp_ns"],
        fields["severity_number"],
        point["tags"]["severity_text"],
        fields["body"],
        fields["correlation_id"],
        fields["span_id"],
        json.loads(fields["attributes"]),
    )

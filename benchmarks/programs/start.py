"""Import an exporter and construct it; prints how long that took and what it added.

    python -m benchmarks.programs.start NAME

The SDK is imported before that, because an application has it whatever exporter it uses.
"""

from __future__ import annotations

import json
import sys
import time

import opentelemetry.sdk._logs.export
import opentelemetry.sdk.metrics.export
import opentelemetry.sdk.trace.export  # noqa: F401  all three are what this program begins with

from benchmarks.programs.resident import now_mib


def ours() -> object:
    from otel_cbtop_exporter import CbtopSpanExporter

    return CbtopSpanExporter()


def otlp() -> object:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def influxdb_client() -> object:
    """Import and construct what a sink based on influxdb-client would need."""
    from influxdb_client.client.influxdb_client import InfluxDBClient

    return InfluxDBClient("http://localhost:8086", "")


def main() -> None:
    make = {"ours": ours, "otlp": otlp, "influxdb_client": influxdb_client}[sys.argv[1]]
    modules, mib = len(sys.modules), now_mib()
    begin = time.perf_counter()
    exporter = make()
    seconds = time.perf_counter() - begin
    found = {
        "seconds": seconds,
        "modules": len(sys.modules) - modules,
        "mib": now_mib() - mib,
    }
    print(json.dumps(found))
    del exporter


if __name__ == "__main__":
    main()

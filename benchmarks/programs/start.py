"""Import an exporter and construct it; prints how long that took, and what it added.

    python -m benchmarks.programs.start EXPORTER

The SDK is there before: whatever exporter an application uses, it has that.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import opentelemetry.sdk._logs.export
import opentelemetry.sdk.metrics.export
import opentelemetry.sdk.trace.export  # noqa: F401  all three are what this program begins with


def ours() -> object:
    from otel_cbtop_exporter import CbtopSpanExporter

    return CbtopSpanExporter()


def otlp() -> object:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def main() -> None:
    make = {"ours": ours, "otlp": otlp}[sys.argv[1]]
    modules, kib = len(sys.modules), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    exporter = make()
    seconds = time.perf_counter() - begin
    found = {
        "seconds": seconds,
        "modules": len(sys.modules) - modules,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kib) / 1024,
    }
    print(json.dumps(found))
    del exporter


if __name__ == "__main__":
    main()

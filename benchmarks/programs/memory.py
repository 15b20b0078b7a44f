"""Export batches of 512 spans and measure the memory of the process; prints it in MiB.

python -m benchmarks.programs.memory EXPORTER URL FOLDER EXPORTS WARM_UP
"""

from __future__ import annotations

import gc
import json
import sys

from opentelemetry.sdk.trace.export import SpanExporter

from benchmarks import data
from benchmarks.programs.exporters import make_exporter
from benchmarks.programs.resident import high_water_mib, now_mib


def main() -> None:
    name, url, folder, exports, warm_up = sys.argv[1:]
    for _ in range(3):
        data.spans()
    before = now_mib()
    exporter: SpanExporter = make_exporter(name, url, folder)
    settled = 0.0
    for number in range(int(exports)):
        exporter.export(data.spans())
        exporter.force_flush()  # as with OTLP, nothing is pending when the next batch comes
        if number == int(warm_up):
            gc.collect()
            settled = now_mib()
    gc.collect()
    found = {
        "before": before,
        "growth": now_mib() - settled,
        "high_water": high_water_mib(),
    }
    print(json.dumps(found))
    exporter.shutdown()


if __name__ == "__main__":
    main()

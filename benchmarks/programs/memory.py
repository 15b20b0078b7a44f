"""Export batches of 512 spans and watch the memory of the process; prints it in MiB.

python -m benchmarks.programs.memory EXPORTER URL FOLDER EXPORTS WARM_UP
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from pathlib import Path

from opentelemetry.sdk.trace.export import SpanExporter

from benchmarks.programs.exporters import make_exporter


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    name, url, folder, exports, warm_up = sys.argv[1:]
    from benchmarks import data

    before = resident_mib()
    exporter: SpanExporter = make_exporter(name, url, folder)
    settled = 0.0
    for number in range(int(exports)):
        exporter.export(data.spans())
        exporter.force_flush()  # nothing waits when the next batch comes, as with OTLP
        if number == int(warm_up):
            gc.collect()
            settled = resident_mib()
    gc.collect()
    found = {
        "before": before,
        "growth": resident_mib() - settled,
        "high_water": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(found))
    exporter.shutdown()


if __name__ == "__main__":
    main()

"""Memory of a process that exports: its growth over a thousand exports, and its high water."""

from __future__ import annotations

from benchmarks.measure import Report, Row, Scale, figure
from benchmarks.processes import folder, receiver, run_program

_NAMES = {
    "jsonlines": "JSON Lines",
    "spooled_jsonlines": "JSON Lines, spool on disk",
    "influxdb": "InfluxDB, spool on disk",
}


def run(scale: Scale) -> Report:
    exports, warm_up = scale.of(1_000, 3), scale.of(200, 1)
    with receiver() as server, folder() as path:
        client_mib = run_program("start", "influxdb_client")["mib"]
        found = {
            name: run_program("memory", name, server.url, path, exports, warm_up)
            for name in ("otlp", *_NAMES)
        }
    otlp = found.pop("otlp")
    rows = []
    for name, answer in found.items():
        rows += [
            Row(
                f"memory over {exports:,} exports of 512 spans, growth, {_NAMES[name]}",
                "OTLPSpanExporter (HTTP)",
                f"{figure(answer['growth'])} MiB",
                f"{figure(otlp['growth'])} MiB",
                answer["growth"],
                gate=2,
                goal=1,
                at_most=True,
                unit=" MiB",
            ),
            Row(
                f"the same, high water above the SDK and the data, {_NAMES[name]}",
                "OTLPSpanExporter (HTTP)",
                f"{figure(answer['high_water'] - answer['before'])} MiB",
                f"{figure(otlp['high_water'] - otlp['before'])} MiB",
                (answer["high_water"] - answer["before"]) / (otlp["high_water"] - otlp["before"]),
                gate=1,
                goal=0.5,
                at_most=True,
                unit=" of it",
            ),
        ]
    return Report(
        "Memory",
        rows=rows,
        notes=[
            (
                f"Growth: resident from the {warm_up + 1}th export to the last. The SDK and what "
                f"makes the spans take {figure(otlp['before'])} MiB in every process."
            ),
            (
                f"influxdb_client alone takes {figure(client_mib)} MiB once it is constructed, "
                "which is why the InfluxDB sink posts through urllib3 itself."
            ),
        ],
    )

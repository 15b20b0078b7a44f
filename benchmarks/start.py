"""What importing and constructing an exporter adds to an application that has the SDK."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Report, Scale, Timing, cheaper, figure
from benchmarks.processes import environment, folder, run_program


def run(scale: Scale) -> Report:
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "otlp": []}
    with folder() as path:
        # Both run from fresh bytecode, wherever this runs.
        env = {**environment(), "PYTHONPYCACHEPREFIX": str(path)}
        for number in range(scale.of(20, 1) + 1):
            for name, all_ in found.items():
                answer = run_program("start", name, env=env)
                if number:  # the first run compiles
                    all_.append(answer)
    ours, otlp = (
        Timing(tuple(answer["seconds"] for answer in all_), items=1) for all_ in found.values()
    )
    return Report(
        "Import and construct, wall time in a fresh interpreter that has imported the SDK",
        rows=[
            cheaper(
                "import and construct, JSON Lines sink",
                "OTLPSpanExporter (HTTP)",
                ours,
                otlp,
                gate=3,
                goal=5,
            )
        ],
        notes=[
            (
                f"{found['ours'][0]['modules']} modules and {_mib(found['ours'])} MiB against "
                f"{found['otlp'][0]['modules']} modules and {_mib(found['otlp'])} MiB."
            )
        ],
    )


def _mib(answers: list[dict[str, Any]]) -> str:
    return figure(min(answer["mib"] for answer in answers))

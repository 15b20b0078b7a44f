"""The whole way in the application: a steady rate through BatchSpanProcessor to the backend.

Measures the CPU time of a process above one without any exporter, per span. A run with an
exporter that throws everything away shows how much of it is BatchSpanProcessor's own.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Report, Scale, Timing, cheaper, figure
from benchmarks.processes import Receiver, environment, folder, receiver, run_program
from tests.servers.influxdb import InfluxDB

_RATE = 2_000
_GATE = 5


def run(scale: Scale) -> Report:
    spans, rounds = scale.of(60_000, 1_000), scale.of(3, 1)
    with receiver() as otlp, folder() as path:
        server = InfluxDB.start(path / "influxdb", 2)
        try:
            bucket = server.new_bucket("bench")
            names = ("none", "discard", "least", "otlp", "influxdb")
            cpu: dict[str, list[float]] = {name: [] for name in names}
            gc: dict[str, list[float]] = {name: [] for name in cpu}
            for _ in range(rounds):
                for name, mine in cpu.items():
                    answer = _shop(name, otlp, server, path, spans)
                    mine.append(answer["cpu_seconds"])
                    gc[name].append(answer["gc_seconds"])
            found = server.count(bucket, "spans", "duration_ns")
            assert found == rounds * (spans + _RATE), found
        finally:
            server.close()
    bare = Timing(tuple(cpu["none"]), items=spans)
    # The minimum of the bare runs: a busy machine slows each of them by a different amount.
    above = {
        name: Timing(tuple(mine - min(cpu["none"]) for mine in all_), items=spans)
        for name, all_ in cpu.items()
    }
    allowed = above["otlp"].best_us / _GATE
    collected = {name: Timing(tuple(all_), items=spans) for name, all_ in gc.items()}
    return Report(
        "The whole way in the application, CPU per span above a run without exporter",
        rows=[
            cheaper(
                f"{spans:,} spans at {_RATE:,} a second to a real InfluxDB, spool on disk",
                "OTLPSpanExporter (HTTP) to a local receiver that only answers",
                above["influxdb"],
                above["otlp"],
                gate=_GATE,
                goal=8,
            )
        ],
        notes=[
            (
                f"CPU of the application's process alone, defaults of BatchSpanProcessor; {rounds} "
                f"runs of each in turn. Making the spans, without any exporter, takes {bare} a "
                "span. The InfluxDB has every span."
            ),
            (
                f"BatchSpanProcessor with an exporter that throws everything away takes "
                f"{above['discard']} a span above that, which both have in them: the garbage "
                f"collector goes through what its queue holds. Above it, ours takes "
                f"{_own(above, 'influxdb')} us and OTLP {_own(above, 'otlp')} us."
            ),
            (
                f"What bounds it: the gate allows {figure(allowed)} us, which leaves "
                f"{figure(allowed - above['discard'].best_us)} above the processor for mapping, "
                "encoding, spool, compression and delivery. Posting the compressed attributes of "
                "spans and nothing else, no ids, names, times or tags, without a spool or a second "
                f"try, takes {_own(above, 'least')} of them."
            ),
            (
                f"The garbage collector takes {collected['discard']} of that where everything is "
                f"thrown away, {collected['influxdb']} in ours and {collected['otlp']} in OTLP's."
            ),
        ],
    )


def _own(above: dict[str, Timing], name: str) -> str:
    return figure(above[name].best_us - above["discard"].best_us)


def _shop(name: str, otlp: Receiver, server: InfluxDB, path: Path, spans: int) -> dict[str, float]:
    url = server.url if name == "influxdb" else otlp.url
    env = {**environment(), "INFLUXDB_V2_TOKEN": server.token, "INFLUXDB_V2_ORG": server.org}
    return run_program("shop", name, url, path, spans, _RATE, env=env)

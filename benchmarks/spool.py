"""What accepting a batch into the spool costs, relative to mapping and encoding it."""

from __future__ import annotations

import time

from benchmarks import data, measure, peers
from benchmarks.measure import Report, Scale, Timing, figure, interleaved
from benchmarks.processes import folder
from otel_cbtop_exporter.delivery.spool import Spool
from otel_cbtop_exporter.delivery.spool_rows import Row, pack
from otel_cbtop_exporter.sinks.base import Record

# The WAL is checkpointed into its database about once in fifty rounds.
_ROUNDS = 400


def run(scale: Scale) -> Report:
    mapper, sink = peers.span_mapper(), peers.influxdb_sink()
    work = interleaved(
        {"spans": lambda spans: peers.line_records(sink, mapper.map(spans))},
        data.spans,
        items=data.BATCH,
        scale=scale,
    )["spans"]
    with folder() as path:
        spool = Spool(path / "spool.db")

        def records_and_rows() -> tuple[list[Record], list[Row]]:
            records = peers.line_records(sink, mapper.map(data.spans()))
            return records, pack(records, time.time_ns())

        def settle() -> None:
            claim = spool.claim("b", 5_000, 1 << 30)
            assert claim is not None
            spool.settle(claim)

        timings = interleaved(
            {
                "insert": lambda batch: spool.append_rows(batch[1]),
                "whole": lambda batch: spool.append(batch[0]),
            },
            records_and_rows,
            items=data.BATCH,
            scale=scale.of_rounds(_ROUNDS),
            settle=settle,
        )
        spool.close()
    insert, whole = timings["insert"], timings["whole"]
    return Report(
        "Spool append, CPU per span",
        rows=[
            _target("the insert alone", insert, work, gate=15, goal=8),
            _target("with packing and compression", whole, work, gate=60, goal=40),
        ],
        notes=[
            (
                "The file is emptied batch by batch. Means, which have the WAL's checkpoints in "
                f"them: the insert {figure(insert.mean_us)} us a span, all of it "
                f"{figure(whole.mean_us)}, mapping and encoding {figure(work.mean_us)}: "
                f"{_percent(insert, work):.0f} % and {_percent(whole, work):.0f} %."
            )
        ],
    )


def _target(work: str, ours: Timing, theirs: Timing, *, gate: float, goal: float) -> measure.Row:
    return measure.Row(
        f"spool append of 512 spans, {work}",
        "mapping and encoding the same batch (line protocol)",
        str(ours),
        str(theirs),
        100 * ours.best_us / theirs.best_us,
        gate,
        goal,
        at_most=True,
        unit=" %",
    )


def _percent(ours: Timing, theirs: Timing) -> float:
    return 100 * ours.mean_us / theirs.mean_us

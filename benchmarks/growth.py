"""How cost grows with attributes, series, the size of a batch, and the size of the spool."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan

from benchmarks import data, peers
from benchmarks.measure import Curve, Report, Scale, interleaved
from benchmarks.processes import folder
from otel_cbtop_exporter.delivery.spool import Spool
from otel_cbtop_exporter.delivery.spool_rows import pack

_NAMES = {"json": "to JSON", "line": "to line protocol", "otlp": "OTLP proto"}
_MIB = 1024 * 1024

_Spans = list[ReadableSpan]


def run(scale: Scale) -> Report:
    return Report(
        "How cost grows",
        curves=[_attributes(scale), _series(scale), _batches(scale), _spool(scale)],
        notes=["Minima; the spool's figures are means of 100 batches, with the WAL's checkpoints."],
    )


def _attributes(scale: Scale) -> Curve:
    curve = _curve("Attributes of a span", "attributes", "us of CPU a span", log_x=False)
    for attributes in (0, 10, 50, 128):
        _add(curve, attributes, [scale.of(512, 20)], attributes, scale.of_rounds(15))
    return curve


def _batches(scale: Scale) -> Curve:
    curve = _curve("Spans of a batch", "spans", "us of CPU a span")
    for size in (1, 10, 100, 1_000, 10_000)[: scale.of(5, 3)]:
        _add(curve, size, [size] * max(1, 500 // size), 10, scale.of_rounds(15))
    return curve


def _add(curve: Curve, x: float, sizes: Sequence[int], attributes: int, scale: Scale) -> None:
    """Measure batches of the given sizes in a row, and add a point to each line."""
    mapper, sink = peers.span_mapper(), peers.influxdb_sink()

    def each(work: Callable[[_Spans], object]) -> Callable[[Sequence[_Spans]], object]:
        return lambda batches: [work(spans) for spans in batches]

    def made() -> list[_Spans]:
        return [data.spans(size, attributes) for size in sizes]

    timings = interleaved(
        {
            "json": each(lambda spans: peers.json_records(mapper.map(spans))),
            "line": each(lambda spans: peers.line_records(sink, mapper.map(spans))),
            "otlp": each(peers.otlp_spans),
        },
        made,
        items=sum(sizes),
        scale=scale,
    )
    for name, line in _NAMES.items():
        curve.lines[line].append((x, timings[name].best_us))


def _series(scale: Scale) -> Curve:
    curve = _curve("Series of metrics, warm", "series", "us of CPU a point")
    for series, rounds in ((10, 60), (100, 60), (1_000, 20), (10_000, 8), (100_000, 3)):
        if scale.quick and series > 100:
            continue
        _add_series(curve, series, scale.of_rounds(rounds))
    return curve


def _add_series(curve: Curve, series: int, scale: Scale) -> None:
    json_mapper, line_mapper = peers.metric_mapper(), peers.metric_mapper()
    sink = peers.influxdb_sink()
    timings = interleaved(
        {
            "json": lambda batch: peers.json_records(json_mapper.map(batch)),
            "line": lambda batch: peers.line_records(sink, line_mapper.map(batch)),
            "otlp": peers.otlp_metrics,
        },
        data.collector(series),
        items=series,
        scale=scale,
    )
    for name, line in _NAMES.items():
        curve.lines[line].append((series, timings[name].best_us))


def _spool(scale: Scale) -> Curve:
    curve = Curve(
        "Spool on disk",
        "MiB that wait in it",
        "ms of CPU a batch of 512 spans",
        {"append": [], "claim and settle": []},
        log_x=False,
    )
    mapper, sink = peers.span_mapper(), peers.influxdb_sink()
    rows = pack(peers.line_records(sink, mapper.map(data.spans())), time.time_ns())
    lane, row_bytes = rows[0].lane, sum(row.stored_bytes for row in rows)
    batches = scale.of(100, 2)
    with folder() as path:
        spool = Spool(path / "spool.db", max_bytes=1 << 40)
        for size in (0, 128, 256, 512, 768, 1024) if not scale.quick else (0, 1):
            while (missing := size * _MIB - spool.stats().spool_bytes) > 0:
                spool.append_rows(rows * min(200, 1 + missing // row_bytes))
            begin = time.process_time()
            for _ in range(batches):
                spool.append_rows(rows)
            appended = time.process_time()
            for _ in range(batches):
                spool.lanes()  # as the drain does first
                claim = spool.claim(lane, data.BATCH, 1 << 30)
                assert claim is not None
                spool.settle(claim)
            settled = time.process_time()
            for line, seconds in (
                ("append", appended - begin),
                ("claim and settle", settled - appended),
            ):
                curve.lines[line].append((size, seconds * 1e3 / batches))
        spool.close()
    return curve


def _curve(title: str, x_label: str, y_label: str, *, log_x: bool = True) -> Curve:
    return Curve(title, x_label, y_label, {line: [] for line in _NAMES.values()}, log_x)

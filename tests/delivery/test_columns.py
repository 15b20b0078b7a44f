"""Columnar batches: no record object is made of them between encoding and the sink's answer."""

import pytest

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery import spool_store
from otel_cbtop_exporter.delivery.pipeline import Pipeline
from otel_cbtop_exporter.sinks.base import Block, Encoded, Records, WriteResult
from otel_cbtop_exporter.testing import RecordingSink
from tests.delivery.records import away
from tests.delivery.test_pipeline import LONG, QUICK, events


class ColumnSink(RecordingSink):
    """Encodes into blocks of alternating signals and two lanes, and keeps all batches written."""

    def __init__(self, *answers, **options):
        super().__init__(**options)
        self.column_answers = list(answers)
        self.batches = []

    def encode(self, events):
        bodies = [b"%d" % event.fields["value"] for event in events]
        times = [event.timestamp_ns for event in events]
        middle = len(events) // 2
        return Encoded(
            Records(
                [
                    Block("a", "span", bodies[:middle], times[:middle]),
                    Block("b", "log", bodies[middle:], times[middle:]),
                    Block("a", "span_event", bodies[:1], times[:1]),
                ]
            )
        )

    def write(self, records, timeout_seconds):
        self.batches.append(records)
        if self.column_answers:
            return self.column_answers.pop(0)(records)
        return WriteResult(delivered=records)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("where", ["memory", "disk", "direct"])
@pytest.mark.parametrize("answers", [[], [away, away]])
def test_what_is_delivered_whole_is_never_taken_apart(
    tmp_path, monkeypatch, where, answers, is_packed
):
    """A batch that is delivered whole stays columnar on its way and while it is counted.

    This holds in memory, on disk and in direct delivery, also after an outage.
    """
    if is_packed:
        monkeypatch.setattr(spool_store, "_RECENT_BYTES", 0)  # as if 8 MiB were waiting already
    options = {
        "memory": {},
        "disk": {"spool": {"path": str(tmp_path)}},
        "direct": {"delivery": "direct"},
    }
    sink = ColumnSink(*answers)
    pipeline = Pipeline(sink, ExporterConfig(retry=QUICK, internal_metrics=True, **options[where]))
    assert pipeline.submit(events(10), LONG)
    assert pipeline.force_flush(LONG)
    assert pipeline.health().events_written == 11
    pipeline.release(LONG)
    assert {batch.lane: batch.bodies for batch in sink.batches} == {
        "a": [b"0", b"1", b"2", b"3", b"4", b"0"],
        "b": [b"5", b"6", b"7", b"8", b"9"],
    }
    assert all(batch._made is None for batch in sink.batches)

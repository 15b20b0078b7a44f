"""More load than usual: a slow backend under twice the load, a burst, and a lasting outage."""

import pytest

from tests.faults.runs import ON_DISK, Variant, together

pytestmark = pytest.mark.faults


def test_a_second_for_each_request(tmp_path):
    """At 2,000 spans a second, larger requests make up for slow ones."""

    def a_second_for_each_request(run):
        run.receiver.seconds = 1.0
        app = run.start(count=6_000, rate=2_000)
        app.end()
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(a_second_for_each_request, tmp_path)


def test_a_burst_of_50_000_spans(tmp_path):
    """All spans that the SDK's queue of 2,048 lets through are delivered; it drops the others."""

    def a_burst_of_50_000_spans(run):
        app = run.start(count=50_000, rate=0)
        app.end()
        assert len(app.handed()) >= 2_048
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(a_burst_of_50_000_spans, tmp_path)


def test_memory_is_flat_in_an_outage(tmp_path):
    """With the spool on disk, a process's memory does not grow with the backlog."""

    def memory_is_flat_in_an_outage(run):
        run.receiver.down()
        app = run.start(count=20_480, rate=0, padding=5_000, flush_every=512)
        app.wait_until_made()
        assert len(app.handed()) == 20_480
        assert app.health["events_spooled"] == 20_480
        assert app.health["spool_bytes"] > 40_000_000
        # Three quarters of it came after the first measurement.
        assert app.told["grown_bytes"] < 24_000_000
        run.receiver.up()
        app.end()
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(memory_is_flat_in_an_outage, tmp_path, ON_DISK)


def test_without_an_exporter(tmp_path):
    """The same application without an exporter, for comparing its latency with the others."""

    def without_an_exporter(run):
        app = run.start()
        app.wait_until_made()
        assert app.handed() == []

    together(without_an_exporter, tmp_path, (Variant("none", "memory"),))

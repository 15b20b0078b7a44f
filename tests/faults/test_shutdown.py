"""The end of a process: in time whatever the backend does, and with nothing left open."""

import pytest

from tests.faults import receiver as rules
from tests.faults.runs import EVERYWHERE, ONE_OF_EACH, PATIENCE_SECONDS, together

pytestmark = pytest.mark.faults

# The limit promised for all three exporters, and what a busy machine may add. The hanging request
# alone would take 10 seconds, and the SDK's shutdown waits for 30.
MOST_SECONDS = 3.0
BUSY_SECONDS = 3.0


def hang(receiver):
    receiver.hangs = True


def be_down(receiver):
    receiver.down()


def be_busy(receiver):
    receiver.rule = rules.refuse(503, "3600")


@pytest.mark.parametrize(
    ("backend", "variants"), [(hang, EVERYWHERE), (be_down, ONE_OF_EACH), (be_busy, ONE_OF_EACH)]
)
def test_shutdown_of_all_three_exporters(tmp_path, backend, variants):
    """With the backend away, shutdown takes 3 s at most, and undelivered records are reported."""

    def shutdown_of_all_three_exporters(run):
        backend(run.receiver)
        app = run.start(count=1_000, logs=True, metrics=True)
        app.end(flush_seconds=0)
        assert app.told["seconds"] < MOST_SECONDS + BUSY_SECONDS
        # Metric points have no ids.
        kept = (
            app.health["events_spooled"]
            if run.on_disk
            else sum(app.health["events_dropped"].values())
        )
        assert kept > len(app.handed()) == 2_000
        assert app.health["events_written"] == 0
        if not run.on_disk:
            assert app.health["events_dropped"].keys() == {"shutdown"}
            return
        run.receiver.hangs = False
        run.receiver.rule = rules.take
        run.receiver.down()
        run.receiver.up()
        after = run.start(count=100)
        after.end()
        run.assert_nothing_lost()
        assert after.health["events_written"] == kept + 100

    together(shutdown_of_all_three_exporters, tmp_path, variants)


def test_shutdown_within_its_timeout(tmp_path):
    """A shutdown with a timeout of 0.5 s keeps to it, though a request hangs for ten."""

    def shutdown_within_its_timeout(run):
        run.receiver.hangs = True
        app = run.start(count=600)
        app.wait_until_made()
        app.ask("close 0.5")
        assert app.told["seconds"] < 0.5 + 1.5  # the default budget alone would take 2.5
        app.end(flush_seconds=0)
        run.assert_counters_agree()

    together(shutdown_within_its_timeout, tmp_path, ONE_OF_EACH)


def test_nothing_is_left_open(tmp_path):
    """Shutdown leaves no thread and no descriptor that was not there before."""

    def nothing_is_left_open(run):
        run.receiver.down()
        app = run.start(count=1_000, logs=True, metrics=True)
        app.wait_until_made()
        run.receiver.up()
        app.ask(f"flush {PATIENCE_SECONDS}")
        app.ask("shutdown 0")
        app.ask("join 30")
        assert app.told["threads"] == ["MainThread"]
        assert app.told["new_descriptors"] == []
        app.end(flush_seconds=0)
        run.assert_nothing_lost()

    together(nothing_is_left_open, tmp_path, ONE_OF_EACH)

"""The backend is away, busy, slow or faulty, and comes back: no spool loses anything."""

import itertools

import pytest

from tests.faults import receiver as rules
from tests.faults.runs import EVERYWHERE, ON_DISK, ONE_OF_EACH, together

pytestmark = pytest.mark.faults


def test_down_in_the_middle(tmp_path):
    """Records handed over while the backend is down are delivered when it is up again."""

    def down_in_the_middle(run):
        app = run.start(count=3_000)
        run.receiver.wait_until(lambda: run.receiver.acknowledged >= 500)
        run.receiver.down()
        app.wait_until_handed(2_000)
        run.receiver.up()
        app.end()
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(down_in_the_middle, tmp_path)


def test_down_from_start_to_end(tmp_path):
    """On disk the next process delivers everything; in memory everything is counted as lost."""

    def down_from_start_to_end(run):
        run.receiver.down()
        app = run.start()
        app.end(flush_seconds=0)
        assert app.health["events_written"] == 0
        assert not app.health["connected"]
        if run.on_disk:
            assert app.health["events_spooled"] == len(app.handed())
            assert "wait on disk for the next process" in app.log
        else:
            assert app.health["events_dropped"] == {"shutdown": len(app.handed())}
            assert f"{len(app.handed())} events were dropped (shutdown)" in app.log
        run.receiver.up()
        run.start(count=100).end()
        assert run.lost() == (set() if run.on_disk else set(app.handed()))
        run.assert_counters_agree()

    together(down_from_start_to_end, tmp_path)


@pytest.mark.parametrize(("status", "variants"), [(503, EVERYWHERE), (429, ONE_OF_EACH)])
def test_busy_with_retry_after(tmp_path, status, variants):
    """A Retry-After of one second is respected, and everything arrives afterwards."""

    def busy_with_retry_after(run):
        run.receiver.rule = rules.refuse(status, "1")
        app = run.start(count=2_500)
        run.receiver.wait_until(lambda: len(run.receiver.seen) >= 3)
        run.receiver.rule = rules.take
        app.end()
        refused = [at for at, _, answered, _ in run.receiver.seen if answered == status]
        assert len(refused) >= 3
        assert all(after - before >= 0.99 for before, after in itertools.pairwise(refused))
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(busy_with_retry_after, tmp_path, variants)


@pytest.mark.parametrize(("how", "variants"), [("unanswered", EVERYWHERE), ("half", ONE_OF_EACH)])
def test_cut_before_the_answer(tmp_path, how, variants):
    """Requests that were stored but not acknowledged are sent again: duplicates, but no loss."""

    def cut_before_the_answer(run):
        run.receiver.rule = rules.cutting(3, how)
        run.start().end()
        assert run.receiver.duplicates() > 0
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(cut_before_the_answer, tmp_path, variants)


def test_cut_while_it_is_sent(tmp_path):
    """A request that arrived only in part is sent again as a whole."""

    def cut_while_it_is_sent(run):
        run.receiver.cut_requests = 5
        run.start().end()
        assert run.receiver.cut_requests == 0
        assert run.receiver.duplicates() == 0
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(cut_while_it_is_sent, tmp_path, ONE_OF_EACH)


def test_hanging_in_the_middle(tmp_path):
    """A request without an answer is given up in time, and its records are sent again."""

    def hanging_in_the_middle(run):
        app = run.start(count=2_500, options={"timeout_ms": 500})
        run.receiver.wait_until(lambda: run.receiver.acknowledged >= 500)
        run.receiver.hangs = True
        app.wait_until_handed(2_000)
        run.receiver.hangs = False
        app.end()
        assert app.health["write_errors"] >= 1
        run.assert_nothing_lost()
        # The application does not receive an answer that comes too late.
        run.assert_outcomes_add_up()

    together(hanging_in_the_middle, tmp_path, ONE_OF_EACH)


def test_clock_set_back(tmp_path):
    """A clock set back by an hour in an outage changes neither what is delivered nor its order."""

    def clock_set_back(run):
        run.receiver.down()
        app = run.start(count=2_000, set_back_at=1_000)
        app.wait_until_made()
        run.receiver.up()
        app.end()
        assert run.receiver.ids() == app.handed()
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(clock_set_back, tmp_path)


def test_clock_set_back_before_the_next_process(tmp_path):
    """A process whose clock is an hour behind delivers what a killed one left."""

    def clock_set_back_before_the_next_process(run):
        run.receiver.down()
        first = run.start()
        first.wait_until_made()
        first.kill()
        run.receiver.up()
        run.start(count=100, set_back_at=0).end()
        assert run.receiver.ids()[: len(first.handed())] == first.handed()
        run.assert_nothing_lost()

    together(clock_set_back_before_the_next_process, tmp_path, ON_DISK)

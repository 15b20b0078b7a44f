"""Processes killed with -9: what they had on disk is delivered by others, in order."""

import pytest

from tests.faults.runs import EVERYWHERE, ON_DISK, together

pytestmark = pytest.mark.faults


def test_killed_in_an_outage(tmp_path):
    """The next process delivers all that was on disk.

    Records in memory, and only those, are lost.
    """

    def killed_in_an_outage(run):
        app = run.start(count=100_000)
        run.receiver.wait_until(lambda: run.receiver.acknowledged >= 500)
        run.receiver.down()
        before = set(run.receiver.ids())
        app.wait_until_handed(2_000)
        app.kill()
        run.receiver.up()
        after = run.start(count=500)
        after.end()
        if run.on_disk:
            run.assert_nothing_lost()
            delivered = [id_ for id_ in run.receiver.ids() if id_ in set(app.handed())]
            assert delivered == app.handed()
        else:
            assert run.lost() == set(app.handed()) - before
            assert after.health["events_written"] == len(after.handed())

    together(killed_in_an_outage, tmp_path, EVERYWHERE)


def test_killed_again_and_again(tmp_path):
    """Nothing is lost, whenever a process is killed, even while it delivers what others left."""

    def killed_again_and_again(run):
        for life in range(4):
            app = run.start(count=100_000)
            app.wait_until_handed(600 + 100 * life)
            app.kill()
        run.start(count=500).end()
        run.assert_nothing_lost()

    together(killed_again_and_again, tmp_path, ON_DISK)


def test_one_of_four_workers_is_killed(tmp_path):
    """A live worker takes over what a killed one left on disk; in memory exactly that is lost."""

    def one_of_four_workers_is_killed(run):
        run.receiver.down()
        killed = run.start(count=100_000)
        workers = [run.start(count=2_500, rate=500) for _ in range(3)]
        killed.wait_until_handed(1_500)
        killed.kill()
        for worker in workers:
            worker.wait_until_handed(500)
        run.receiver.up()
        if run.on_disk:
            # Delivered by the live workers, none of which has ended yet.
            theirs = set(killed.handed())
            run.receiver.wait_until(lambda: theirs <= set(run.receiver.ids()))
            assert [id_ for id_ in run.receiver.ids() if id_ in theirs] == killed.handed()
        for worker in workers:
            worker.end()
        assert run.lost() == (set() if run.on_disk else set(killed.handed()))
        written = sum(worker.health["events_written"] for worker in workers)
        run.receiver.wait_until(lambda: run.receiver.acknowledged == written)

    together(one_of_four_workers_is_killed, tmp_path, (EVERYWHERE[0], EVERYWHERE[2]))

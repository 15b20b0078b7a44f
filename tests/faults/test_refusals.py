"""The backend refuses some records, for good or for now: no other is affected or lost."""

import pytest

from tests.faults import receiver as rules
from tests.faults.runs import IN_MEMORY, ON_DISK, ONE_OF_EACH, together, wait_until

pytestmark = pytest.mark.faults


def number_of(id_):
    return int(id_.rpartition(":")[2] or -1)


def assert_rejected(run, reason, ids):
    """Check that exactly these ids were rejected and all others arrived.

    On disk the dead letters give the reason.
    """
    (app,) = run.apps
    assert app.health["events_rejected"] == len(ids)
    assert not ids & set(run.receiver.ids())
    if run.on_disk:
        assert run.dead_letters() == ({reason: ids} if ids else {})
    run.assert_nothing_lost(but=set() if run.on_disk else ids)
    run.assert_counters_agree()


def test_one_poisoned_record_in_a_thousand(tmp_path):
    """Exactly the bad records are rejected, and none of their neighbours."""

    def one_poisoned_record_in_a_thousand(run):
        run.receiver.rule = rules.poisoned_by(lambda id_: number_of(id_) % 1_000 == 700)
        app = run.start(count=3_000)
        app.end()
        assert_rejected(run, "invalid", {f"{app.name}:{n}" for n in (700, 1_700, 2_700)})

    together(one_poisoned_record_in_a_thousand, tmp_path)


def test_too_large(tmp_path):
    """Requests are halved until they are small enough, and nothing is rejected."""

    def too_large(run):
        run.receiver.rule = rules.too_large_over(20_000)
        run.start().end()
        assert run.receiver.statuses().count(413) > 0
        assert_rejected(run, "too_large", set())

    together(too_large, tmp_path)


def test_one_record_that_breaks_the_server(tmp_path):
    """A record that breaks the server is found by halving, and rejected alone: others pass."""

    def one_record_that_breaks_the_server(run):
        run.receiver.rule = rules.broken_by(lambda id_: number_of(id_) == 700)
        app = run.start()
        app.end()
        assert_rejected(run, "server_error", {f"{app.name}:700"})

    together(one_record_that_breaks_the_server, tmp_path, ONE_OF_EACH)


def test_one_batch_that_always_gets_500(tmp_path):
    """A whole batch of records that break the server is rejected, and those behind it arrive."""

    def one_batch_that_always_gets_500(run):
        run.receiver.rule = rules.broken_by(lambda id_: 512 <= number_of(id_) < 1_024)
        app = run.start()
        app.end()
        assert_rejected(run, "server_error", {f"{app.name}:{n}" for n in range(512, 1_024)})

    together(one_batch_that_always_gets_500, tmp_path)


def test_everything_gets_500_for_a_while(tmp_path):
    """If a server fails on everything, no record is blamed."""

    def everything_gets_500_for_a_while(run):
        run.receiver.rule = rules.broken_by(lambda _: True)
        app = run.start()
        app.wait_until_handed(1_500)
        run.receiver.wait_until(lambda: len(run.receiver.seen) >= 20)
        run.receiver.rule = rules.take
        app.end()
        assert_rejected(run, "server_error", set())

    together(everything_gets_500_for_a_while, tmp_path, ONE_OF_EACH)


def test_one_lane_refused_for_the_whole_run(tmp_path):
    """A refused lane waits while the other is delivered, and arrives once its bucket exists."""

    def one_lane_refused_for_the_whole_run(run):
        run.receiver.rule = rules.without_lane("logs")
        app = run.start(count=1_500, logs=True)
        app.wait_until_made()
        spans = {id_ for id_ in app.handed() if "-log:" not in id_}
        run.receiver.wait_until(lambda: set(run.receiver.ids("spans")) == spans)
        logs = len(app.handed()) - len(spans)
        wait_until(lambda: app.ask("look 0")["health"]["events_spooled"] == logs > 0)
        assert app.health["events_written"] == len(spans)
        assert app.health["events_dropped"] == {}
        assert run.receiver.ids("logs") == []
        run.receiver.rule = rules.take
        app.end()
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(one_lane_refused_for_the_whole_run, tmp_path)


def test_one_lane_refused_to_the_end(tmp_path):
    """If a bucket is missing to the end, its records wait on disk for the next process."""

    def one_lane_refused_to_the_end(run):
        run.receiver.rule = rules.without_lane("logs")
        app = run.start(count=1_000, logs=True)
        app.end(flush_seconds=0)
        logs = {id_ for id_ in app.handed() if "-log:" in id_}
        assert set(run.receiver.ids()) == set(app.handed()) - logs
        assert app.health["events_spooled"] == len(logs)
        run.receiver.rule = rules.take
        run.start(count=100).end()
        run.assert_nothing_lost()
        run.assert_counters_agree()

    together(one_lane_refused_to_the_end, tmp_path, ON_DISK)


def test_one_lane_refused_to_the_end_in_memory(tmp_path):
    """If a bucket is missing to the end, memory drops and counts its records, and no others."""

    def one_lane_refused_to_the_end_in_memory(run):
        run.receiver.rule = rules.without_lane("logs")
        app = run.start(count=1_000, logs=True)
        app.end(flush_seconds=0)
        logs = {id_ for id_ in app.handed() if "-log:" in id_}
        assert run.lost() == logs
        assert app.health["events_dropped"] == {"shutdown": len(logs)}
        run.assert_counters_agree()

    together(one_lane_refused_to_the_end_in_memory, tmp_path, IN_MEMORY)

"""The guarantees of a spool, in memory and in a file."""

import itertools
import sqlite3
from contextlib import closing

import pytest

from otel_cbtop_exporter.delivery.spool import Spool, SpoolError
from otel_cbtop_exporter.delivery.spool_reports import Reports
from otel_cbtop_exporter.delivery.spool_rows import MIGRATIONS, migrate
from otel_cbtop_exporter.sinks.base import Record
from otel_cbtop_exporter.tally import Tally
from tests.delivery.spools import (
    MANY,
    Told,
    bodies,
    empty,
    incompressible,
    insert_as_it_was,
    make_spool,
    numbered,
)

SECOND = 1_000_000_000


@pytest.fixture
def told():
    return Told()


@pytest.fixture(params=["memory", "file"])
def spool(request, tmp_path, told):
    spool = make_spool(None if request.param == "memory" else tmp_path / "spool.db", told)
    yield spool
    spool.close()


def test_records_of_a_lane_are_claimed_in_the_order_in_which_they_were_appended(spool):
    """Records of a lane are claimed in order, across batches and whatever other lanes do."""
    for start in range(0, 30, 3):
        spool.append(numbered(start, 3, "a") + numbered(start, 3, "b"))
    for lane in ("a", "b"):
        claim = spool.claim(lane, MANY, MANY)
        assert bodies(claim.records) == [b"%d" % n for n in range(30)]


def test_a_record_comes_back_as_it_was(spool):
    """Every field of a record survives the spool."""
    record = Record(b"\x00\xff", b"\xfe", "lane \N{SNOWMAN}", 7, (("name", b"\xfd"),))
    spool.append([record])
    assert spool.claim(record.lane, 1, 1).records == [record]


def test_lanes_come_oldest_first(spool):
    """Lanes are listed by how long their oldest record has waited, longest first."""
    for lane in ("c", "a", "b", "a", "c"):
        spool.append(numbered(0, 1, lane))
    assert spool.lanes() == ["c", "a", "b"]
    spool.settle(spool.claim("c", 1, MANY))
    assert spool.lanes() == ["a", "b", "c"]


def test_a_claim_takes_whole_rows_up_to_its_limits(spool):
    """A claim takes whole rows within its limits on events and bytes, and always at least one."""
    for start in range(0, 40, 10):
        spool.append(numbered(10 + start, 10))
    assert len(spool.claim("lane", 1, MANY).records) == 10
    assert len(spool.claim("lane", 29, MANY).records) == 20
    assert len(spool.claim("lane", 30, MANY).records) == 30
    assert len(spool.claim("lane", MANY, 59).records) == 20
    assert len(spool.claim("lane", MANY, 1).records) == 10


def test_a_huge_batch_is_claimed_in_parts(spool):
    """The records of one append need not be claimed all at once."""
    spool.append(numbered(0, 10_000))
    assert len(spool.claim("lane", 1, MANY).records) == 2_000
    assert len(empty(spool)) == 10_000


def test_a_claim_does_not_remove(spool):
    """Claimed records stay in the spool until they are settled."""
    spool.append(numbered(0, 3))
    assert spool.claim("lane", 3, MANY).records == spool.claim("lane", 3, MANY).records
    assert spool.stats().events_spooled == 3


def test_what_a_claim_kept_stays_where_it_was(spool):
    """Kept records stay in their order, in front of those that came later."""
    for start in (0, 3, 6):
        spool.append(numbered(start, 3))
    claim = spool.claim("lane", 6, MANY)
    spool.settle(claim, [claim.records[4], claim.records[1]])
    assert bodies(empty(spool)) == [b"1", b"4", b"6", b"7", b"8"]


def test_a_batch_kept_whole_changes_nothing(spool):
    """Keeping a whole claim changes nothing, so an outage does not write to the disk."""
    spool.append(numbered(0, 3))
    claim = spool.claim("lane", 3, MANY)
    before = spool.stats()
    spool.settle(claim, claim.records)
    assert spool.stats() == before
    assert spool.claim("lane", 3, MANY).records == claim.records


def test_equal_records_are_kept_as_often_as_they_were(spool):
    """Equal records are counted separately when some of them are kept."""
    spool.append([Record(b"same", lane="lane")] * 3)
    claim = spool.claim("lane", 3, MANY)
    spool.settle(claim, claim.records[:2])
    assert len(empty(spool)) == 2


def test_settling_what_was_not_claimed_is_refused(spool):
    """Settling a record that is not part of the claim raises ValueError and changes nothing."""
    spool.append(numbered(0, 2))
    claim = spool.claim("lane", 2, MANY)
    with pytest.raises(ValueError, match="not of this claim"):
        spool.settle(claim, [Record(b"other", lane="lane")])
    assert spool.stats().events_spooled == 2


def test_settling_twice_does_nothing(spool):
    """Settling a claim twice has no effect, even if SQLite reused the row's id for a new row."""
    spool.append(numbered(0, 1))
    claim = spool.claim("lane", 1, MANY)
    spool.settle(claim)
    spool.append(numbered(1, 1))
    spool.settle(claim)
    assert bodies(empty(spool)) == [b"1"]


def test_a_record_leaves_only_by_settle_or_counted(spool, told):
    """A record leaves the spool only when it is settled or counted as dropped."""
    spool.max_bytes = 64 * 1024
    for seed in range(40):
        spool.append(incompressible(4, 1_000, seed))
        assert spool.stats().spool_bytes <= spool.max_bytes
    left = spool.stats().events_spooled
    assert told.dropped == {"spool_full": 160 - left}
    assert empty(spool) == [r for s in range(40) for r in incompressible(4, 1_000, s)][-left:]


def test_claimed_rows_are_not_evicted(spool, told):
    """Claimed rows are not evicted, or they would be counted as both dropped and delivered."""
    spool.append(incompressible(1, 10_000))
    claim = spool.claim("lane", 1, MANY)
    spool.append(incompressible(1, 10_000, 1))
    spool.max_bytes = 0
    spool.evict()
    assert told.dropped == {"spool_full": 1}
    spool.settle(claim, claim.records)
    assert empty(spool) == incompressible(1, 10_000)


def test_a_batch_larger_than_the_spool_is_counted(spool, told):
    """A batch that is larger than the spool is dropped and counted."""
    spool.max_bytes = 10_000
    spool.append(incompressible(30, 1_000))
    assert told.dropped == {"spool_full": 30}
    assert spool.stats().events_spooled == 0


@pytest.mark.parametrize("path", [None, "spool.db"])
def test_old_records_leave_as_expired(tmp_path, told, path):
    """Records older than the age limit are dropped as expired, at an append and at a claim."""
    now = [85 * SECOND]
    spool = make_spool(path and tmp_path / path, told, max_age_ms=10_000, time_ns=lambda: now[0])
    spool.append(numbered(0, 2))
    now[0] = 95 * SECOND
    spool.append(numbered(2, 3))
    assert told.dropped == {}
    now[0] = 100 * SECOND
    spool.append(numbered(5, 1))
    assert told.dropped == {"expired": 2}
    now[0] = 106 * SECOND
    assert bodies(spool.claim("lane", MANY, MANY).records) == [b"5"]
    assert told.dropped == {"expired": 5}
    spool.delete()


def test_a_clock_set_back_changes_neither_order_nor_content(tmp_path, told):
    """When the clock is set back, rows keep the order of arrival and none expires early."""
    now = [0]
    spool = make_spool(tmp_path / "spool.db", told, max_age_ms=10_000, time_ns=lambda: now[0])
    for n, second in enumerate((1_000, 10, 11, 1_001)):
        now[0] = second * SECOND
        spool.append(numbered(n, 1))
    assert bodies(empty(spool)) == [b"0", b"1", b"2", b"3"]
    assert told.dropped == {}
    spool.close()


@pytest.mark.parametrize("path", [None, "spool.db"])
def test_stats_say_what_waits(tmp_path, path):
    """Stats give the events, compressed bytes and age of the oldest record that wait."""
    times_ns = itertools.count(11)
    spool = make_spool(path and tmp_path / path, time_ns=lambda: next(times_ns))
    assert (spool.stats().events_spooled, spool.stats().oldest_ns) == (0, None)
    spool.append(incompressible(2, 5_000))
    spool.append(numbered(0, 1))
    stats = spool.stats()
    assert (stats.events_spooled, stats.oldest_ns) == (3, 11)
    assert 10_000 < stats.spool_bytes < 11_000
    empty(spool)
    assert (spool.stats().events_spooled, spool.stats().spool_bytes) == (0, 0)
    spool.close()


def test_a_closed_file_is_opened_again_with_all_it_held(tmp_path):
    """Another spool on the same file finds its totals, its order and the kept records."""
    spool = make_spool(tmp_path / "spool.db")
    spool.append(numbered(0, 5))
    claim = spool.claim("lane", 5, MANY)
    spool.settle(claim, claim.records[3:])
    stats = spool.stats()
    spool.close()
    again = make_spool(tmp_path / "spool.db")
    again.open()
    assert again.stats() == stats
    assert bodies(empty(again)) == [b"3", b"4"]
    again.close()


def of_every_kind(count):
    """Make records of which a quarter each are spans, log records, data points and span events."""
    signals = ("span", "log", "metric", "span_event")
    return [Record(b"%d" % n, lane="lane", signal=signals[n % len(signals)]) for n in range(count)]


def test_what_waits_is_known_by_kind_in_every_file(tmp_path):
    """Waiting spans, log records and data points are counted as they come, stay and go."""
    spool = make_spool(tmp_path / "spool.db")
    spool.append(of_every_kind(8))
    assert spool.stats().waiting == Tally(8, 2, 2, 2)
    claim = spool.claim("lane", 8, MANY)
    spool.settle(claim, claim.records[:5])
    assert spool.stats().waiting == Tally(5, 2, 1, 1)
    spool.close()
    again = make_spool(tmp_path / "spool.db")
    again.open()
    assert again.stats().waiting == Tally(5, 2, 1, 1)
    other = make_spool(None)
    assert again.hand_over(other, MANY)
    assert (again.stats().waiting, other.stats().waiting) == (Tally(), Tally(5, 2, 1, 1))
    again.close()
    other.close()


def test_what_the_spool_lets_go_is_told_by_kind():
    """Drops are reported with counts per kind, so that callers need not decode the dropped rows."""
    dropped = []
    spool = Spool(None, reports=Reports(lambda reason, tally: dropped.append((reason, tally))))
    spool.append(of_every_kind(4))
    spool.max_bytes, before = 0, spool.max_bytes
    spool.evict()
    spool.max_bytes = before
    spool.append(of_every_kind(8))
    spool.close()
    assert dropped == [("spool_full", Tally(4, 1, 1, 1)), ("shutdown", Tally(8, 2, 2, 2))]


def test_a_memory_spool_counts_what_its_end_drops(told):
    """Closing a spool in memory counts what it still holds as dropped."""
    spool = make_spool(None, told)
    spool.append(numbered(0, 5))
    spool.close()
    assert told.dropped == {"shutdown": 5}


def test_a_lane_that_is_not_unicode_is_a_spool_error(spool):
    """A lane name that cannot be stored raises SpoolError, as any other failure to store does."""
    with pytest.raises(SpoolError):
        spool.append([Record(b"x", lane="\ud800")])


def pages(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA page_count").fetchone()[0]


def test_space_is_given_back_after_a_peak(tmp_path):
    """A file that has grown is removed once it is empty, and the spool continues in a new one."""
    path = tmp_path / "spool.db"
    spool = make_spool(path)
    for seed in range(24):
        spool.append(incompressible(1, 1_000_000, seed))
    while claim := spool.claim("lane", 1, 1):
        spool.settle(claim)
    assert not path.exists()
    assert not list(tmp_path.iterdir())
    spool.append(numbered(0, 1))
    spool.close()
    assert pages(path) < 10


def test_freed_pages_do_not_count_as_full(tmp_path, told):
    """The size limit applies to waiting records: freed pages in the file count as room."""
    spool = make_spool(tmp_path / "spool.db", told, max_bytes=4_000_000)
    for seed in range(30):
        spool.append(incompressible(1, 900_000, seed))
        spool.append(incompressible(1, 900_000, seed + 100))
        spool.settle(spool.claim("lane", 1, 1))
        spool.settle(spool.claim("lane", 1, 1))
    assert told.dropped == {}
    spool.close()
    assert pages(tmp_path / "spool.db") * 4096 < 8_000_000


def steps(spool, call):
    """Count SQLite's virtual machine instructions in hundreds, to measure work without a clock."""
    count = 0

    def tick():
        nonlocal count
        count += 1

    connection = spool._store.database._connection
    connection.set_progress_handler(tick, 100)
    call()
    connection.set_progress_handler(None, 0)
    return count


def test_claim_lanes_append_and_settle_cost_the_same_in_a_full_spool(tmp_path):
    """The cost of each operation does not depend on how much waits."""
    spool = make_spool(tmp_path / "spool.db")
    spool.append(numbered(0, 1, "a") + numbered(0, 1, "b"))
    calls = [
        lambda: spool.claim("a", 1, 1),
        spool.lanes,
        lambda: spool.append(numbered(0, 1, "a")),
        lambda: spool.settle(spool.claim("a", 1, 1)),
        spool.stats,
    ]
    small = [steps(spool, call) for call in calls]

    def fill(_):
        for n in range(3_000):
            spool.append(numbered(n, 1, "ab"[n % 2]))

    database = spool._store.database
    database.transact(database._connection, fill)
    assert [steps(spool, call) for call in calls] == pytest.approx(small, abs=2)
    spool.close()


def test_opening_reads_no_bodies(tmp_path, told):
    """Opening a spool reads no bodies, so it is fast however much waits.

    Here the pages of the bodies are overwritten with zeros.
    """
    path = tmp_path / "spool.db"
    spool = make_spool(path)
    for seed in range(10):
        spool.append(incompressible(1, 100_000, seed))
    stats = spool.stats()
    bodies_ = [row.body for row in spool._store.unclaimed(MANY)[0].values()]
    spool.close()
    emptied = 0
    with path.open("r+b") as file:
        for at in range(0, path.stat().st_size, 4_096):
            file.seek(at + 4)  # past the number of the next page
            if any(part in body for part in [file.read(64)] for body in bodies_):
                file.seek(at)
                emptied += file.write(bytes(4_096))
    assert emptied > 900_000
    again = make_spool(path, told)
    again.open()
    assert again.stats() == stats
    assert again.lanes() == ["lane"]
    assert told.notices == []
    again.close()


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_a_spool_of_an_earlier_schema_is_read(tmp_path, version):
    """Rows of a file written with any earlier schema version can be claimed."""
    path = tmp_path / "spool.db"
    new = make_spool(tmp_path / "new.db")
    batches = [numbered(0, 3, "a"), [Record(b"\xff", b"\xfe", "b", 7, (("h", b"1"),), "span")] * 3]
    for batch in batches:
        new.append(batch)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, MIGRATIONS[:version])
        if version:
            insert_as_it_was(connection, new._store.unclaimed(MANY)[0].values())
    new.close()
    old = make_spool(path)
    old.open()
    assert empty(old) == (batches[0] + batches[1] if version else [])
    old.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_a_migration_and_its_record_are_one_transaction():
    """A failing migration step is rolled back with its version; the steps before it stay."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            migrate(
                connection, [["CREATE TABLE a (x)"], ["CREATE TABLE b (x)", "CREATE TABLE a (x)"]]
            )
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]


def test_a_newer_schema_is_left_alone(tmp_path):
    """A file of a later schema version is not touched, and the error names the schema version."""
    path = tmp_path / "spool.db"
    path.touch(mode=0o600)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        connection.execute("PRAGMA journal_mode = WAL")
    before = path.read_bytes()
    spool = make_spool(path)
    with pytest.raises(SpoolError, match="schema version"):
        spool.append(numbered(0, 1))
    assert path.read_bytes() == before


def test_a_failed_settle_sends_records_twice_at_worst(tmp_path, told):
    """Settled records that the disk refuses to remove are not claimed again, and are removed later.

    Only a crash in between would send them twice.
    """
    path = tmp_path / "spool.db"
    spool = make_spool(path, told)
    spool.append(numbered(0, 2))
    spool.append(numbered(2, 2))
    spool.append(numbered(4, 2))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # blocks all other writers, as a full disk would
        claim = spool.claim("lane", 4, MANY)
        spool.settle(claim, claim.records[3:])
        assert told.causes == {"spool_settle"}
        assert spool.stats().events_spooled == 3
        assert bodies(spool.claim("lane", MANY, MANY).records) == [b"3", b"4", b"5"]
        other.execute("ROLLBACK")
    spool.append(numbered(6, 1))
    spool.close()
    again = make_spool(path)
    again.open()
    assert bodies(empty(again)) == [b"3", b"4", b"5", b"6"]
    again.close()


def test_a_file_that_owes_everything_is_replaced(tmp_path, told):
    """A file that cannot be updated (full disk) is removed once all of it is delivered."""
    path = tmp_path / "spool.db"
    spool = make_spool(path, told)
    spool.append(numbered(0, 2))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        spool.settle(spool.claim("lane", 2, MANY))
        assert not path.exists()
    spool.append(numbered(2, 1))
    spool.close()
    again = make_spool(path)
    assert bodies(empty(again)) == [b"2"]
    again.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_interrupts_a_transaction_leaves_none_open(tmp_path, error):
    """An interrupted transaction is closed.

    Otherwise later appends would join it, and be lost with the process.
    """
    spool = make_spool(tmp_path / "s.db")
    database = spool._store.database

    def interrupted(_):
        raise error

    with pytest.raises(error):
        database.run(lambda connection: database.transact(connection, interrupted))
    spool.append(numbered(0, 2))
    with closing(sqlite3.connect(tmp_path / "s.db")) as other:
        assert other.execute("SELECT sum(events) FROM batches").fetchone() == (2,)
    spool.close()


@pytest.mark.parametrize("path", [None, "spool.db"])
def test_what_a_handler_interrupts_behind_the_commit_is_counted(tmp_path, told, path):
    """Rows that are there are known, so they are sent, and nothing is called damaged."""
    spool = make_spool(path and tmp_path / path, told)
    spool.append(numbered(0, 2))
    real = spool._store._transact

    def interrupted(work):
        real(work)
        spool._store._transact = real
        raise KeyboardInterrupt

    spool._store._transact = interrupted
    with pytest.raises(KeyboardInterrupt):
        spool.append(numbered(2, 3))
    assert spool.stats().events_spooled == 5
    assert empty(spool) == numbered(0, 5)
    assert (spool.stats().events_spooled, spool.stats().spool_bytes) == (0, 0)
    assert told.dropped == {}
    spool.delete()


def test_rows_that_were_not_committed_leave_nothing_at_hand(spool):
    """Their numbers come again, and are then other rows."""

    def allow(commits):
        refused = sqlite3.SQLITE_OK if commits else sqlite3.SQLITE_DENY

        def decide(action, argument, *_):
            is_commit = (action, argument) == (sqlite3.SQLITE_TRANSACTION, "COMMIT")
            return refused if is_commit else sqlite3.SQLITE_OK

        spool._store.run(lambda connection: connection.set_authorizer(decide))

    allow(commits=False)
    with pytest.raises(SpoolError, match="not authorized"):
        spool.append(numbered(0, 2))
    assert spool._store.ledger.recent.body_bytes == 0
    allow(commits=True)
    spool.append(numbered(5, 2))
    assert empty(spool) == numbered(5, 2)

"""Damaged spool files: at every page, cut short, and in their bodies."""

import random
import sqlite3
import time
from contextlib import closing

import pytest

from otel_cbtop_exporter.delivery.spool import SpoolError
from tests.delivery.spools import (
    MANY,
    Told,
    empty,
    incompressible,
    make_folder,
    make_spool,
    numbered,
)

PAGE = 4096
BATCHES = [incompressible(2, 3_000, seed, lane="ab"[seed % 2]) for seed in range(12)]
APPENDED = [record for batch in BATCHES for record in batch]


@pytest.fixture
def told():
    return Told()


def filled(path):
    """Make a small closed spool file; return its number of pages."""
    spool = make_spool(path)
    for batch in BATCHES:
        spool.append(batch)
    spool.close()
    return path.stat().st_size // PAGE


def root_page(path, name):
    """Return the first page of a table or an index, counted from 0."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = connection.execute(query, (name,)).fetchone()
    return page - 1


def damage(path, page, how):
    with path.open("r+b") as file:
        file.seek(page * PAGE)
        data = bytearray(file.read(PAGE))
        if how == "zeros":
            data = bytearray(PAGE)
        elif how == "noise":
            data = random.Random(page).randbytes(PAGE)
        elif how == "flip":
            for n in random.Random(page).sample(range(PAGE), 16):
                data[n] ^= 0xFF
        file.seek(page * PAGE)
        file.write(data)


def drain(spool):
    return [record for lane in sorted(spool.lanes()) for record in claims(spool, lane)]


def claims(spool, lane):
    taken = []
    while claim := spool.claim(lane, 1, MANY):
        taken += claim.records
        spool.settle(claim)
    return taken


PAGES = 30


@pytest.mark.parametrize("how", ["zeros", "noise", "flip"])
@pytest.mark.parametrize("page", range(PAGES))
def test_a_damaged_page_costs_what_was_on_it_and_nothing_else(tmp_path, page, how):
    """Rows off a damaged page are delivered unchanged, and the spool goes on taking records."""
    path = tmp_path / "spool.db"
    pages = filled(path)
    assert 20 < pages <= PAGES
    page %= pages
    through_which_all_is_found = (0, root_page(path, "batches"))
    damage(path, page, how)
    told = Told()
    spool = make_spool(path, told)
    try:
        spool.open()
    except SpoolError as error:  # the damaged page claims a later schema version
        assert "schema version" in str(error)  # noqa: PT017
        return
    got = drain(spool)
    spool.append(numbered(0, 3, "new"))
    assert drain(spool) == numbered(0, 3, "new")
    spool.close()
    assert set(got) <= set(APPENDED)
    assert len(set(got)) == len(got)
    if page not in through_which_all_is_found:
        assert len(got) >= len(APPENDED) - 4  # a page holds parts of at most two rows
    if len(got) < len(APPENDED):
        assert told.dropped.get("damaged") or "spool_damaged" in told.causes


@pytest.mark.parametrize("page", range(PAGES))
def test_damage_under_an_open_spool_is_counted_to_the_record(tmp_path, page):
    """If an open spool's file is damaged, delivered and dropped add up to what was appended."""
    path = tmp_path / "spool.db"
    pages = filled(path)
    told = Told()
    spool = make_spool(path, told)
    spool.open()
    spool._store.database.close()  # as a fork does; the totals are already known
    damage(path, page % pages, "noise")
    got = drain(spool)
    spool.append(numbered(0, 3, "new"))
    got += drain(spool)
    assert len(set(got)) == len(got)
    assert len(got) + sum(told.dropped.values()) == len(APPENDED) + 3
    spool.close()


@pytest.mark.parametrize("length", [0, 1, 100, PAGE, PAGE + 1, 5 * PAGE])
def test_a_file_cut_short_is_survived(tmp_path, length):
    """A spool survives a file cut to any length; an empty file is treated as new."""
    path = tmp_path / "spool.db"
    filled(path)
    with path.open("r+b") as file:
        file.truncate(length)
    told = Told()
    spool = make_spool(path, told)
    spool.append(numbered(0, 3, "new"))
    got = drain(spool)
    assert set(numbered(0, 3, "new")) <= set(got) <= {*APPENDED, *numbered(0, 3, "new")}
    spool.close()
    assert length <= 1 or "spool_damaged" in told.causes  # SQLite treats one byte as an empty file


def test_a_damaged_file_is_kept_aside(tmp_path):
    """A file that is not a database is set aside byte for byte, and the notice names it."""
    path = tmp_path / "spool.db"
    path.write_bytes(b"this is no database" * 1_000)
    path.chmod(0o600)
    told = Told()
    spool = make_spool(path, told)
    spool.append(numbered(0, 1))
    (aside,) = tmp_path.glob("spool.db.damaged-*")
    assert aside.read_bytes() == b"this is no database" * 1_000
    assert aside.stat().st_mode & 0o777 == 0o600
    assert str(aside) in told.notices[0][1]
    spool.close()


def test_only_the_newest_damaged_files_are_kept(tmp_path):
    """Only the three newest damaged files are kept, so that they cannot fill a failing disk."""
    path = tmp_path / "spool.db"
    for n in range(6):
        path.write_bytes(b"%d is no database" % n * 1_000)
        path.chmod(0o600)
        spool = make_spool(path)
        spool.append(numbered(0, 1))
        spool.delete()
    kept = sorted(p.read_bytes()[:1] for p in tmp_path.iterdir())
    assert kept == [b"3", b"4", b"5"]


def test_a_body_that_was_changed_is_noticed(tmp_path):
    """A changed body, which SQLite does not notice, fails its checksum.

    The other rows are delivered.
    """
    path = tmp_path / "spool.db"
    filled(path)
    with closing(sqlite3.connect(path)) as connection:
        (body,) = connection.execute("SELECT body FROM batches WHERE id = 3").fetchone()
        changed = bytearray(body)
        changed[len(changed) // 2] ^= 1
        connection.execute("UPDATE batches SET body = ? WHERE id = 3", (bytes(changed),))
        connection.commit()
    told = Told()
    spool = make_spool(path, told)
    got = drain(spool)
    assert set(got) == set(APPENDED) - set(BATCHES[2])
    assert told.dropped == {"damaged": 2}
    assert spool.stats().events_spooled == 0
    spool.close()


@pytest.mark.parametrize("found_by", ["settle", "append"])
def test_a_claim_is_settled_in_the_file_that_took_the_damaged_ones_place(tmp_path, found_by):
    """Rows keep their ids in the new file, so records delivered meanwhile are not sent again."""
    path = tmp_path / "spool.db"
    filled(path)
    told = Told()
    spool = make_spool(path, told)
    claim = spool.claim("a", 1, MANY)
    index_page = root_page(path, "batches_by_lane")
    spool._store.database.close()
    damage(path, index_page, "noise")  # all rows can be read without the index
    if found_by == "append":
        spool.append(numbered(0, 1, "new"))
    spool.settle(claim)
    assert "spool_damaged" in told.causes
    assert told.dropped == {}
    got = {record for record in drain(spool) if record.lane != "new"}
    assert got == set(APPENDED) - set(claim.records)
    spool.close()


def test_a_damaged_file_of_a_dead_process_is_taken_over(tmp_path):
    """The readable rows of a dead process's damaged file are sent.

    Its files are removed, except for the one set aside.
    """
    folder = make_folder(tmp_path)
    for batch in BATCHES:
        folder.append(batch)
    folder.close()
    (file,) = folder.folder.glob("*.db")
    damage(file, file.stat().st_size // PAGE - 2, "zeros")
    told = Told()
    again = make_folder(tmp_path, told)
    assert again.adopt() == 1
    got = empty(again)
    assert len(APPENDED) - 8 <= len(got) <= len(APPENDED)
    again.close()
    assert all(".damaged-" in p.name for p in again.folder.iterdir())


def test_what_was_settled_before_the_damage_was_seen_is_not_sent_again(tmp_path):
    """Settled records are not sent again from the new file, nor from rows cached in memory."""
    path = tmp_path / "spool.db"
    now_ns = time.time_ns()
    told = Told()
    spool = make_spool(path, told, max_age_ms=3_600_000, time_ns=lambda: now_ns)
    spool.append(numbered(0, 6, lane="a"))
    spool.append(numbered(6, 3, lane="a"))
    claim = spool.claim("a", MANY, MANY)
    spool._store.database.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(path, root_page(path, "batches_by_lane"), "noise")
    spool.settle(claim, claim.records[4:6])
    assert spool.stats().oldest_ns == now_ns
    assert list(spool.claim("a", MANY, MANY).records) == claim.records[4:6]
    assert told.dropped == {}
    spool.close()


@pytest.mark.parametrize("lost_by", ["damage", "removal"])
def test_a_claim_of_lost_rows_ends_no_rows_that_got_their_ids(tmp_path, lost_by):
    """Rows appended to the file that took a lost one's place stay until they are claimed."""
    path = tmp_path / "spool.db"
    told = Told()
    spool = make_spool(path, told)
    spool.append(numbered(0, 5))
    lost = spool.claim("lane", MANY, MANY)
    spool._store.database.close()
    if lost_by == "damage":
        damage(path, 0, "noise")
    else:
        path.unlink()
    spool.append(numbered(5, 5))
    spool.append(numbered(10, 5))
    spool.settle(lost)
    assert empty(spool) == numbered(5, 10)
    assert told.dropped == {"damaged": 5}
    spool.delete()


def test_a_change_that_is_owed_to_a_lost_file_is_forgotten(tmp_path, told):
    """What waits is counted right although a full disk and a removed file came together."""
    path = tmp_path / "spool.db"
    spool = make_spool(path, told)
    spool.append(numbered(0, 5, "a"))
    spool.append(numbered(5, 5, "b"))
    first, second = spool.claim("a", MANY, MANY), spool.claim("b", MANY, MANY)

    def refuse(*_):
        return sqlite3.SQLITE_DENY

    spool._store.run(lambda connection: connection.set_authorizer(refuse))
    spool.settle(first)
    spool._store.database.close()
    path.unlink()
    spool.append(numbered(20, 3, "c"))
    spool.settle(second)
    assert spool.stats().events_spooled == 3
    assert drain(spool) == numbered(20, 3, "c")
    assert (spool.stats().events_spooled, spool.stats().spool_bytes) == (0, 0)
    assert told.dropped == {"damaged": 5}
    spool.delete()

"""Records claimed soon after they were appended are neither packed nor unpacked for it."""

import pytest

from otel_cbtop_exporter.delivery import spool_store
from otel_cbtop_exporter.sinks.base import Records
from tests.delivery.spools import MANY, Told, empty, incompressible, make_spool, numbered


@pytest.fixture(autouse=True)
def _recent_bytes(monkeypatch):
    """Lower the bound of 8 MiB to about four batches of `batch`, within a test's reach."""
    monkeypatch.setattr(spool_store, "_RECENT_BYTES", 4 * 11_000)


@pytest.fixture(params=["memory", "file"])
def spool(request, tmp_path):
    spool = make_spool(None if request.param == "memory" else tmp_path / "spool.db")
    yield spool
    spool.close()


def batch(number):
    return Records.of(incompressible(10, 1_000, number))


def is_as_it_came(claim, batch):
    return claim.records.blocks[0] is batch.blocks[0]


def test_what_is_claimed_soon_is_what_was_appended(spool):
    """A claim made soon returns the appended blocks themselves, not ones from packed bytes."""
    for number in range(20):
        appended = batch(number)
        spool.append(appended)
        claim = spool.claim("lane", MANY, MANY)
        assert is_as_it_came(claim, appended)
        spool.settle(claim)


def test_a_file_holds_what_is_claimed_from_memory(tmp_path):
    """Records claimed from memory are also in the file, which may be opened after a crash."""
    spool = make_spool(tmp_path / "spool.db")
    spool.append(batch(0))
    assert is_as_it_came(spool.claim("lane", MANY, MANY), batch(0)) is False
    again = make_spool(tmp_path / "spool.db")
    assert empty(again) == batch(0)
    spool.close()
    again.close()


def test_only_so_much_is_kept_as_it_came(spool):
    """Rows beyond the limit are packed; an emptied spool keeps new rows unpacked again."""
    for _ in range(2):
        appended = [batch(number) for number in range(10)]
        for one in appended:
            spool.append(one)
        assert spool._store.ledger.recent.body_bytes == 40_000
        claims = []
        while claim := spool.claim("lane", 10, MANY):
            claims.append(claim)
            spool.settle(claim)
        assert [claim.records for claim in claims] == appended
        came = [is_as_it_came(claim, one) for claim, one in zip(claims, appended, strict=True)]
        assert came == [True] * 4 + [False] * 6
        assert spool._store.ledger.recent.body_bytes == 0


def test_memory_packs_what_waits_long():
    """In a long outage only the oldest rows stay unpacked.

    All others are packed and counted at that size.
    """
    spool = make_spool()
    for number in range(10, 90):
        spool.append(numbered(1_000 * number, 1_000))
    rows = spool._store.unclaimed(MANY)[0].values()
    assert [bool(row.body) for row in rows] == [False] * 8 + [True] * 72
    assert spool.stats().spool_bytes == sum(row.stored_bytes for row in rows)
    spool.close()


def test_a_full_spool_packs_everything(monkeypatch):
    """A full spool holds as many records as if no row were ever kept unpacked."""
    told = [Told(), Told()]
    full = [make_spool(None, one, max_bytes=100_000, time_ns=lambda: 7) for one in told]
    for number in range(200):
        full[0].append(numbered(1_000 * number, 1_000))
    monkeypatch.setattr(spool_store, "_RECENT_BYTES", 0)  # nothing is kept unpacked
    for number in range(200):
        full[1].append(numbered(1_000 * number, 1_000))
    assert told[0].dropped["spool_full"] == told[1].dropped["spool_full"]
    assert full[0].stats() == full[1].stats()
    for spool in full:
        spool.close()


def test_what_goes_back_to_the_disk_is_packed(tmp_path):
    """Rows that are handed over from memory to a file are packed there."""
    memory, file = make_spool(), make_spool(tmp_path / "spool.db")
    memory.append(batch(0))
    assert memory.hand_over(file, MANY)
    assert memory._store.ledger.recent.body_bytes == 0
    file.close()
    again = make_spool(tmp_path / "spool.db")
    again.open()
    assert empty(again) == batch(0)
    again.close()
    memory.close()


def test_what_a_claim_keeps_is_at_hand_for_the_next(spool):
    """Kept records, all or part of a claim, are not unpacked again for each new try."""
    spool.append(batch(0))
    claim = spool.claim("lane", MANY, MANY)
    spool.settle(claim, claim.records)
    again = spool.claim("lane", MANY, MANY)
    assert again.records.blocks == claim.records.blocks
    spool.settle(again, again.records[3:])
    last = spool.claim("lane", MANY, MANY)
    assert last.records == batch(0)[3:]
    assert spool._store.ledger.recent.body_bytes == 7_000
    assert spool.stats().events_spooled == 7


def test_a_row_id_that_comes_again_is_another_row(spool):
    """A reused row id is a different row: SQLite reuses the id of the last row once it is gone."""
    for number in range(3):
        spool.append(numbered(number, 1))
        spool.max_bytes = 0
        spool.evict()
        spool.max_bytes = MANY
        spool.append(numbered(10 + number, 1))
        assert empty(spool) == numbered(10 + number, 1)

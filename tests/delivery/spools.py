"""Helpers that make spools and collect what they report."""

import sys

import msgspec

from otel_cbtop_exporter.delivery.spool import Spool
from otel_cbtop_exporter.delivery.spool_folder import SpoolFolder
from otel_cbtop_exporter.delivery.spool_lock import holds_spool_lock
from otel_cbtop_exporter.delivery.spool_reports import Reports
from otel_cbtop_exporter.delivery.spool_rows import unpack
from otel_cbtop_exporter.sinks.base import Record

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MANY = 1_000_000
BLOCKS_SINCE = 4  # schema version; rows of earlier versions hold records


class Told:
    """Collects the events `dropped` by a spool, by reason, and the `causes` of its notices."""

    def __init__(self):
        self.dropped = {}
        self.notices = []

    def drop(self, reason, tally):
        assert not holds_spool_lock()  # a log handler may block, or export
        self.dropped[reason] = self.dropped.get(reason, 0) + tally.events

    def note(self, cause, message):
        assert not holds_spool_lock()
        self.notices.append((cause, message))

    @property
    def causes(self):
        return {cause for cause, _ in self.notices}


def numbered(first, count, lane="lane"):
    """Make records whose bodies are consecutive numbers."""
    return [Record(b"%d" % n, lane=lane) for n in range(first, first + count)]


def incompressible(count, size, seed=0, lane="lane"):
    """Make records that zstd cannot shrink."""
    import random

    rng = random.Random(seed)
    return [Record(rng.randbytes(size), lane=lane) for _ in range(count)]


def make_spool(path=None, told=None, **options):
    told = told or Told()
    return Spool(path, reports=Reports(told.drop, told.note), **options)


def make_folder(path, told=None, destination="somewhere", **options):
    told = told or Told()
    return SpoolFolder(path, "kafka", destination, reports=Reports(told.drop, told.note), **options)


def bodies(records):
    return [record.body for record in records]


def empty(place):
    """Claim and settle everything, as the drain thread does; return the records in order."""
    taken = []
    while spools := place.spools():
        lanes = [(spool, lane) for spool in spools for lane in spool.lanes()]
        if not lanes:
            break
        spool, lane = lanes[0]
        claim = spool.claim(lane, MANY, MANY)
        taken += claim.records
        claim.spool.settle(claim)
    return taken


def insert_as_it_was(connection, rows):
    """Insert rows into a database of any schema version, with that version's columns and bodies."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    names = ["lane", "events", "spans", "log_records", "data_points", "bytes", "created_ns", "body"]
    table = connection.execute("PRAGMA table_info(batches)").fetchall()
    there = [name for _, name, *_ in table if name != "id"]
    statement = f"INSERT INTO batches ({', '.join(there)}) VALUES ({', '.join('?' * len(there))})"
    for row in rows:
        values = dict(zip(names, row.columns, strict=True))
        if version < BLOCKS_SINCE:
            values["body"] = zstd.compress(msgspec.msgpack.encode(list(unpack(row.body))))
        connection.execute(statement, [values[name] for name in there])

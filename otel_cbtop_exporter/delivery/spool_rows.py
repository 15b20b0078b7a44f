"""What a spool's database holds: its schema, and rows of packed records.

Belongs here: the shape of the file and of a row, for every version of the package that ever
wrote one. Not here: the statements that read and change rows (`spool_queries.py`).
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from otel_cbtop_exporter.sinks.base import Block, Record, Records
from otel_cbtop_exporter.tally import Tally

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "MIGRATIONS",
    "ROW_OVERHEAD_BYTES",
    "Row",
    "SpoolError",
    "migrate",
    "pack",
    "row_of",
    "rows_of",
    "unpack",
]

# The steps from one version to the next, never edited once released: `PRAGMA user_version` is
# how many of them a file has seen. `body` is the last column, so that sums over the others do
# not have to walk through it (over 1 GiB: 35 ms against 852), which is why step 3 writes anew.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE batches (
            id INTEGER PRIMARY KEY,
            lane TEXT NOT NULL,
            events INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            created_ns INTEGER NOT NULL,
            body BLOB NOT NULL
        )
        """,
    ),
    ("CREATE INDEX batches_by_lane ON batches (lane)",),
    (
        "ALTER TABLE batches RENAME TO batches_2",
        """
        CREATE TABLE batches (
            id INTEGER PRIMARY KEY,
            lane TEXT NOT NULL,
            events INTEGER NOT NULL,
            spans INTEGER NOT NULL,
            log_records INTEGER NOT NULL,
            data_points INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            created_ns INTEGER NOT NULL,
            body BLOB NOT NULL
        )
        """,
        """
        INSERT INTO batches
        SELECT id, lane, events, 0, 0, 0, bytes, created_ns, body FROM batches_2
        """,
        "DROP TABLE batches_2",
        "CREATE INDEX batches_by_lane ON batches (lane)",
    ),
    (),  # a row's body holds blocks of records, which an older version of the package cannot read
)

# What a row takes besides its body: the other columns, the index, half-filled pages.
ROW_OVERHEAD_BYTES = 100
# A row is what a claim takes at least, so a huge batch becomes several rows.
_ROW_EVENTS = 2_000
_ROW_BYTES = 1024 * 1024

# The checksum is what finds a flipped bit in a body: SQLite has none of its own.
_ZSTD_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.checksum_flag: 1,
    # What it looks back to, 128 KiB: with all of a batch it takes a seventh more time, and more
    # memory, for bodies that are a tenth smaller.
    zstd.CompressionParameter.window_log: 17,
}
_encoder = msgspec.msgpack.Encoder(enc_hook=list)  # of `Lines`
_decoder = msgspec.msgpack.Decoder(list[Block])
_older_decoder = msgspec.msgpack.Decoder(list[Record])  # of what was written before schema 4


class SpoolError(Exception):
    """A spool's place cannot take or give records now; nothing of the call was done."""


class Row(NamedTuple):
    """One batch of records of one lane, in the order of the columns behind `id`.

    Attributes:
        lane: Of every record in it.
        events: How many records.
        spans: How many of them are spans.
        log_records: How many of them are log records.
        data_points: How many of them are data points of metrics.
        body_bytes: Of their bodies, before compression.
        created_ns: When it was appended, nanoseconds since the Unix epoch.
        body: `zstd(msgpack(list of blocks))`; records in the place of blocks before schema 4.
            Empty while it is not packed, which is only in memory.
        records: What is in it, where that is at hand; this is no column.
    """

    lane: str
    events: int
    spans: int
    log_records: int
    data_points: int
    body_bytes: int
    created_ns: int
    body: bytes = b""
    records: Records | None = None

    @property
    def tally(self) -> Tally:
        """What is in it."""
        return Tally(self.events, self.spans, self.log_records, self.data_points)

    @property
    def stored_bytes(self) -> int:
        """What it takes in the database, or will take while its records are not packed."""
        return (len(self.body) or self.body_bytes) + ROW_OVERHEAD_BYTES

    @property
    def columns(self) -> tuple[object, ...]:
        """What is stored of it."""
        return self[:-1]

    def packed(self) -> Row:
        """Return the row with its body.

        Raises:
            SpoolError: A text of its records is not Unicode.
        """
        if self.body or self.records is None:
            return self
        try:
            return self._replace(body=_packed(list(self.records.pieces())))
        except UnicodeEncodeError as error:
            raise SpoolError(f"records cannot be packed: {error.reason}") from error
        except OverflowError:
            return self._replace(body=_packed([*map(_with_int64_times, self.records.pieces())]))


def _packed(blocks: Sequence[Block]) -> bytes:
    compressor = zstd.ZstdCompressor(options=_ZSTD_OPTIONS)
    # How MessagePack begins an array of so many; nil takes one byte.
    begin = _encoder.encode([None] * len(blocks))[: -len(blocks)]
    packed = [compressor.compress(begin)]
    packed += [compressor.compress(_encoder.encode(block)) for block in blocks]
    return b"".join([*packed, compressor.flush()])


def _with_int64_times(block: Block) -> Block:
    """Return records whose times MessagePack can carry; the bodies have them as they are."""
    times_ns = [min(max(time_ns, -(2**63)), 2**63 - 1) for time_ns in block.timestamps_ns]
    return msgspec.structs.replace(block, timestamps_ns=times_ns)


def migrate(
    connection: sqlite3.Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> None:
    """Bring a database to the newest schema; each step and its record are one transaction.

    Args:
        connection: In autocommit mode (`isolation_level=None`).
        migrations: The statements of each step.

    Raises:
        SpoolError: The file is of a version that is not known here; it is untouched.
        sqlite3.Error: A step could not be made; the steps before it stay.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= len(migrations):
        raise SpoolError(
            f"it has schema version {version}, this package knows 0 to {len(migrations)}"
        )
    for number, statements in enumerate(migrations[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def rows_of(records: Sequence[Record], now_ns: int) -> list[Row]:
    """Make rows of records, not packed: each of one lane, in the records' order within a lane."""
    return [
        row_of(part, now_ns)
        for lane in Records.of(records).by_lane()
        for part in lane.cut(_ROW_EVENTS, _ROW_BYTES)
    ]


def row_of(records: Records, created_ns: int) -> Row:
    """Make one row, not packed, of records of one lane."""
    tally = Tally.of(records)
    return Row(
        records.lane,
        tally.events,
        tally.spans,
        tally.log_records,
        tally.data_points,
        records.body_bytes,
        created_ns,
        records=records,
    )


def pack(records: Sequence[Record], now_ns: int) -> list[Row]:
    """Make rows of records as `rows_of` does, and pack them.

    Raises:
        SpoolError: A text of the records is not Unicode.
    """
    return [row.packed() for row in rows_of(records, now_ns)]


def unpack(body: bytes) -> Records | None:
    """Return the records of a row, or None if its body is damaged."""
    try:
        packed = zstd.decompress(body)
        try:
            return Records(_decoder.decode(packed))
        except msgspec.ValidationError:
            return Records.of(_older_decoder.decode(packed))
    except (zstd.ZstdError, msgspec.DecodeError, ValueError, EOFError):
        return None

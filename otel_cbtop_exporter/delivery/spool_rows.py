"""What a spool's database holds: its schema, and rows of packed records.

Belongs here: the format of the file and of a row, for every version of the package that has ever
written one. Not here: the statements that read and change rows (`spool_queries.py`).
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

# The steps from one version to the next, never edited once released: `PRAGMA user_version` is the
# number of steps that a file has seen. `body` is the last column, so that sums over the others need
# not walk through it (for 1 GiB: 35 ms instead of 852); for that, step 3 rewrites the table.
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
    (),  # from here on a body holds blocks of records, which older versions cannot read
)

# What a row takes besides its body: the other columns, the index, half-filled pages.
ROW_OVERHEAD_BYTES = 100
# The largest row. A claim takes at least a whole row, so a huge batch becomes several rows.
_ROW_EVENTS = 2_000
_ROW_BYTES = 1024 * 1024

# The checksum detects a flipped bit in a body: SQLite has no checksums of its own.
_ZSTD_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.checksum_flag: 1,
    # A window of 128 KiB: one over a whole batch takes a seventh more time, and more memory, for
    # bodies that are a tenth smaller.
    zstd.CompressionParameter.window_log: 17,
}
_encoder = msgspec.msgpack.Encoder(enc_hook=list)  # the hook is for `Lines`
_decoder = msgspec.msgpack.Decoder(list[Block])
_older_decoder = msgspec.msgpack.Decoder(list[Record])  # for rows written before schema 4


class SpoolError(Exception):
    """A spool cannot take or give records now; the call has had no effect."""


class Row(NamedTuple):
    """One batch of records of one lane, in the order of the columns behind `id`.

    Attributes:
        lane: The lane of every record.
        events: How many records.
        spans: How many of them are spans.
        log_records: How many of them are log records.
        data_points: How many of them are data points of metrics.
        body_bytes: The size of their bodies before compression.
        created_ns: When the row was appended, nanoseconds since the Unix epoch.
        body: `zstd(msgpack(list of blocks))`; before schema 4, records instead of blocks. Empty
            while the row is not packed, which happens only in memory.
        records: The row's records if they are at hand; not a column.
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
        """How many records are in it, in total and by signal."""
        return Tally(self.events, self.spans, self.log_records, self.data_points)

    @property
    def stored_bytes(self) -> int:
        """How many bytes it takes; while it is not packed, bodies count uncompressed."""
        return (len(self.body) or self.body_bytes) + ROW_OVERHEAD_BYTES

    @property
    def columns(self) -> tuple[object, ...]:
        """The values that are stored."""
        return self[:-1]

    def packed(self) -> Row:
        """Return the row with its body packed.

        Raises:
            SpoolError: A text in its records is not Unicode.
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
    # The header of a MessagePack array of this length: encode it with nils, one byte each, and cut
    # them off.
    begin = _encoder.encode([None] * len(blocks))[: -len(blocks)]
    packed = [compressor.compress(begin)]
    packed += [compressor.compress(_encoder.encode(block)) for block in blocks]
    return b"".join([*packed, compressor.flush()])


def _with_int64_times(block: Block) -> Block:
    """Return records with times cut to what MessagePack can carry; the bodies are unchanged."""
    times_ns = [min(max(time_ns, -(2**63)), 2**63 - 1) for time_ns in block.timestamps_ns]
    return msgspec.structs.replace(block, timestamps_ns=times_ns)


def migrate(
    connection: sqlite3.Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> None:
    """Bring a database to the newest schema; each step and its version are one transaction.

    Args:
        connection: In autocommit mode (`isolation_level=None`).
        migrations: The statements of each step.

    Raises:
        SpoolError: The file has an unknown version; it is left untouched.
        sqlite3.Error: A step failed; the steps before it stay.
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
    """Make unpacked rows, each of one lane; records of a lane keep their order."""
    return [
        row_of(part, now_ns)
        for lane in Records.of(records).by_lane()
        for part in lane.cut(_ROW_EVENTS, _ROW_BYTES)
    ]


def row_of(records: Records, created_ns: int) -> Row:
    """Make one unpacked row from records of one lane."""
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
    """Make rows as `rows_of` does, and pack them.

    Raises:
        SpoolError: A text in the records is not Unicode.
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

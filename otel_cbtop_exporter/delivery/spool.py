"""Records waiting for one sink, in one SQLite database: in memory, or in one file.

Belongs here: append, claim, settle, what leaves when there are too many or they are too old,
and what a damaged file or a fork does. Not here: which file is whose, how many there are, and
what happens when the disk says no (`spool_folder.py`).
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from otel_cbtop_exporter.delivery.process_lock import process_lock, watch_forks
from otel_cbtop_exporter.delivery.spool_checks import make_private_file
from otel_cbtop_exporter.delivery.spool_damage import move_aside, salvage
from otel_cbtop_exporter.delivery.spool_rows import (
    NewerSchemaError,
    Row,
    migrate,
    pack,
    pack_row,
    unpack,
)
from otel_cbtop_exporter.sinks.base import Record

__all__ = ["DEFAULT_MEMORY_BYTES", "Claim", "Spool", "SpoolError", "SpoolStats"]

DEFAULT_MEMORY_BYTES = 64 * 1024 * 1024

# What a row takes besides its body: the other columns, the index, half-filled pages.
_ROW_OVERHEAD_BYTES = 100
# A database that grew past this is replaced once it is empty: SQLite keeps its pages for ever,
# and VACUUM of a peak takes as long as writing it did.
_REPLACE_BYTES = 16 * 1024 * 1024

_PRAGMAS = (
    # On by default in Debian's SQLite: deleting 5,000 rows takes 1.5 s instead of 0.05.
    "PRAGMA secure_delete = OFF",
    "PRAGMA journal_mode = WAL",
    "PRAGMA journal_size_limit = 4194304",
)
_INSERT = "INSERT INTO batches (lane, events, bytes, created_ns, body) VALUES (?, ?, ?, ?, ?)"
_INSERT_AS = """
    INSERT INTO batches (id, lane, events, bytes, created_ns, body) VALUES (?, ?, ?, ?, ?, ?)
"""
_DELETE = "DELETE FROM batches WHERE id = ?"
_REPLACE = "UPDATE batches SET events = ?, bytes = ?, body = ? WHERE id = ?"
_SUMS = f"""
    SELECT coalesce(sum(events), 0), coalesce(sum(length(body) + {_ROW_OVERHEAD_BYTES}), 0)
    FROM batches
"""
_ANY = "SELECT 1 FROM batches LIMIT 1"
_OLDEST = "SELECT created_ns FROM batches ORDER BY id LIMIT 1"
_BY_AGE = f"""
    SELECT id, events, length(body) + {_ROW_OVERHEAD_BYTES}, created_ns FROM batches ORDER BY id
"""
_WHOLE_ROWS = "SELECT id, lane, events, bytes, created_ns, body FROM batches ORDER BY id"
_BY_LANE = """
    SELECT id, events, bytes, created_ns, body FROM batches WHERE lane = ? ORDER BY id
"""
# From lane to lane along the index, because DISTINCT walks through every row of it.
_LANES = """
    WITH RECURSIVE found (lane) AS (
        SELECT min(lane) FROM batches
        UNION ALL
        SELECT (SELECT min(lane) FROM batches WHERE batches.lane > found.lane)
        FROM found WHERE found.lane IS NOT NULL
    )
    SELECT lane FROM found WHERE lane IS NOT NULL
    ORDER BY (SELECT min(id) FROM batches WHERE batches.lane = found.lane)
"""
# By their words: the codes came to Python with 3.11.
_SIGNS_OF_DAMAGE = ("malformed", "not a database", "unsupported file format", "no such", "decode")

_T = TypeVar("_T")
# Connections that a fork without our hooks left open in a child: never closed, never freed.
_abandoned: list[sqlite3.Connection] = []


class SpoolError(Exception):
    """A spool's place cannot take or give records now; what it holds is still counted in it."""


class _DamagedError(SpoolError):
    """The file is not a database any more, or only in parts."""


class Claim(msgspec.Struct):
    """Records that were handed out for sending and are still in their spool.

    Attributes:
        lane: Of every record.
        row_ids: The rows they are in.
        records: Oldest first.
        row_events: How many of them each row holds.
        spool: Where they are.
    """

    lane: str
    row_ids: list[int]
    records: list[Record]
    row_events: list[int]
    spool: Spool


class SpoolStats(msgspec.Struct, frozen=True):
    """What is waiting.

    Attributes:
        events_spooled: Records.
        spool_bytes: What they take, compressed.
        oldest_ns: When the oldest was appended, nanoseconds since the Unix epoch; None if
            nothing waits.
    """

    events_spooled: int
    spool_bytes: int
    oldest_ns: int | None


class Spool:
    """Records waiting for one sink, kept in a SQLite database.

    Promises, each with a test of that name in tests/delivery/test_spool*.py: an appended
    record survives a killed process (in a file); a record leaves only by settle or counted,
    as `spool_full`, `expired` or `damaged`; records of a lane are claimed in the order in
    which they were appended; what a claim kept stays where it was; a failed settle sends
    records twice at worst, never not at all; a fork neither hangs nor loses a record.

    Nothing is opened before the first use. Safe to share between threads, all calls run under
    the lock of the process; only one thread may claim. In a forked child a file stays the
    parent's and every call raises; a spool in memory starts empty.

    Args:
        path: A file in a folder that is ours; it is made if it is missing. None: in memory.
        max_bytes: What may wait, compressed; the oldest leave first.
        max_age_ms: Older rows leave, by the clock of who appends; 0 keeps them.
        synchronous: `normal` survives a killed process, `full` a power cut too.
        on_dropped: Told the reason and the number of events that left without being settled;
            called without the lock, on the thread that made them leave.
        on_notice: Told a short stable cause and a sentence for the log, likewise.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        max_bytes: int = DEFAULT_MEMORY_BYTES,
        max_age_ms: int = 0,
        synchronous: Literal["normal", "full"] = "normal",
        on_dropped: Callable[[str, int], None] = lambda reason, events: None,
        on_notice: Callable[[str, str], None] = lambda cause, message: None,
    ) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._max_age_ns = max_age_ms * 1_000_000
        self._synchronous = synchronous
        self._on_dropped = on_dropped
        self._on_notice = on_notice
        self._connection: sqlite3.Connection | None = None
        self._events = 0
        self._bytes = 0
        self._claimed: dict[str, set[int]] = {}
        # What settle owes to the database: rows to remove, or to replace by what was kept.
        # It is paid at once, or, when the disk is full, with the next transaction.
        self._owed: dict[int, Row | None] = {}
        self._dropped: Counter[str] = Counter()
        self._notices: list[tuple[str, str]] = []
        self._loaded = False
        self._disowned = False
        watch_forks(self)

    def append(self, records: Sequence[Record], now_ns: int) -> None:
        """Take records; when this returns, they are committed.

        Args:
            records: Of any lanes; their order within a lane is kept.
            now_ns: Nanoseconds since the Unix epoch.

        Raises:
            SpoolError: The place cannot take them, and none of them was taken.
        """
        self.append_rows(pack(records, now_ns), now_ns)

    def append_rows(self, rows: Sequence[Row], now_ns: int) -> None:
        """Take packed records, as `append` does."""
        if rows:
            self._run(lambda connection: self._insert(connection, rows, now_ns, self.max_bytes))

    def spools(self) -> Sequence[Spool]:
        """Return the spools to empty, in order: this one, where it is alone."""
        return (self,)

    def lanes(self) -> list[str]:
        """Return the lanes that have records, the one with the oldest first.

        Raises:
            SpoolError: The place cannot be read.
        """
        return self._run(lambda connection: [lane for (lane,) in connection.execute(_LANES)])

    def claim(self, lane: str, max_events: int, max_bytes: int) -> Claim | None:
        """Hand out the oldest records of a lane; they stay in the spool until they are settled.

        Whoever claims a lane again gives up the claim before it.

        Args:
            lane: Which.
            max_events: The most records; whole rows are taken, so the first row may have more.
            max_bytes: The most bytes of bodies, likewise.

        Returns:
            A claim with at least one record, or None if the lane has none.

        Raises:
            SpoolError: The place cannot be read.
        """
        while True:
            rows = self._run(
                lambda connection: self._oldest(connection, lane, max_events, max_bytes)
            )
            claim = Claim(lane, [], [], [], self)
            unreadable: dict[int, Row | None] = {}
            for row_id, body in rows:
                try:
                    records = unpack(body)
                except ValueError:
                    unreadable[row_id] = None
                    continue
                claim.row_ids.append(row_id)
                claim.row_events.append(len(records))
                claim.records += records
            if unreadable:
                self._leave(lane, unreadable, "damaged")
            if claim.row_ids or not rows:
                return claim if claim.row_ids else None

    def settle(self, claim: Claim, kept: Sequence[Record] = ()) -> None:
        """Let the records of a claim go, except those to be tried again.

        Where the disk refuses it, the records are gone for every later claim all the same, and
        the database is told with the next transaction that succeeds; a crash before that sends
        them twice.

        Args:
            claim: From this spool; settling it twice does nothing.
            kept: Records of the claim; they stay in their rows, in their order.

        Raises:
            ValueError: `kept` holds a record that the claim does not.
        """
        self._leave(claim.lane, _left(claim, kept))
        with process_lock():
            self._claimed.pop(claim.lane, None)

    def evict(self, max_bytes: int, now_ns: int) -> None:
        """Let the oldest rows go, counted, until what is left fits and none is too old.

        Args:
            max_bytes: Compressed bytes that may stay; claimed rows stay over that.
            now_ns: Nanoseconds since the Unix epoch.

        Raises:
            SpoolError: The place does not allow it now.
        """
        self._run(lambda connection: self._insert(connection, (), now_ns, max_bytes))

    def hand_over(self, target: Spool, max_bytes: int, now_ns: int) -> bool:
        """Move the oldest rows that are not claimed to another spool, and behind what it holds.

        Args:
            target: Where to.
            max_bytes: About how much, compressed.
            now_ns: Nanoseconds since the Unix epoch.

        Returns:
            Whether nothing is left that could be moved.

        Raises:
            SpoolError: One of the two does not allow it; everything is where it was.
        """
        with process_lock():
            rows, whole = self._run(lambda connection: self._unclaimed(connection, max_bytes))
            target.append_rows([row for _, row in rows], now_ns)
            self._run(lambda connection: self._remove(connection, rows))
            return whole

    def stats(self) -> SpoolStats:
        """Return what is waiting; opens nothing that was not used before."""
        with process_lock():
            if not self._events:
                return SpoolStats(0, 0, None)
            try:
                oldest = self._run(lambda connection: connection.execute(_OLDEST).fetchone())
            except SpoolError:
                oldest = None
            return SpoolStats(self._events, self._bytes, oldest[0] if oldest else None)

    def close(self) -> None:
        """Close the database; a later call opens it again.

        What a spool in memory still holds is dropped and counted as `shutdown`.
        """
        with process_lock():
            if self.path is None:
                self._dropped["shutdown"] += self._events
            self._disconnect()
            self._forget()
        self._tell()

    def delete(self) -> None:
        """Close the database and remove its files, whatever they hold."""
        with process_lock():
            self._disconnect()
            self._forget()
            if self.path is not None:
                # The database last: a WAL that outlived it would be played into a later one.
                for suffix in ("-wal", "-shm", ""):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def before_fork(self) -> None:
        """Close the file, so that the child inherits no open one."""
        if self.path is not None:
            self._disconnect()

    def after_fork_in_child(self) -> None:
        """Leave what is here to the parent."""
        if self._connection is not None:
            _abandoned.append(self._connection)
            self._connection = None
        self._disowned = self.path is not None
        self._dropped.clear()
        self._notices.clear()
        self._forget()

    def _run(self, operation: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            with process_lock():
                try:
                    return self._guarded(operation)
                except _DamagedError as error:
                    self._rebuild(str(error))
                    return self._guarded(operation)
        finally:
            self._tell()

    def _guarded(self, operation: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._disowned:
            raise SpoolError("the file belongs to the process that this one was forked from")
        try:
            return operation(self._open())
        except sqlite3.Error as error:
            text = str(error).lower()
            if self.path is not None and any(sign in text for sign in _SIGNS_OF_DAMAGE):
                raise _DamagedError(str(error)) from error
            raise SpoolError(str(error)) from error
        except (OSError, NewerSchemaError) as error:
            raise SpoolError(str(error)) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        if self.path is not None:
            make_private_file(self.path)
        # Threads take turns under our lock, so sqlite3's own check would only be in the way.
        connection = sqlite3.connect(
            self.path or ":memory:", timeout=1, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            migrate(connection)
            if not self._loaded:
                self._events, self._bytes = connection.execute(_SUMS).fetchone()
        except BaseException:
            connection.close()
            raise
        self._loaded = True
        self._connection = connection
        return connection

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        if connection.in_transaction:
            # A signal handler on the thread that is in it: it commits with the interrupted one.
            yield
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            for row_id, row in self._owed.items():
                if row is None:
                    connection.execute(_DELETE, (row_id,))
                else:
                    connection.execute(_REPLACE, (row.events, row.bytes, row.body, row_id))
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._owed.clear()

    def _insert(
        self,
        connection: sqlite3.Connection,
        rows: Sequence[Row],
        now_ns: int,
        max_bytes: int,
    ) -> None:
        events = sum(row.events for row in rows)
        size = sum(_stored_bytes(row) for row in rows)
        dropped: Counter[str] = Counter()
        with self._transaction(connection):
            connection.executemany(_INSERT, rows)
            over = self._bytes + size - max_bytes
            for row_id, row_events, row_bytes, reason in self._leaving(connection, over, now_ns):
                connection.execute(_DELETE, (row_id,))
                dropped[reason] += row_events
                events -= row_events
                size -= row_bytes
        self._events += events
        self._bytes += size
        self._dropped += dropped

    def _leaving(
        self, connection: sqlite3.Connection, over: int, now_ns: int
    ) -> list[tuple[int, int, int, str]]:
        """Choose the oldest rows that are too old or too many: id, events, bytes, reason."""
        leaving: list[tuple[int, int, int, str]] = []
        if over <= 0 and not self._max_age_ns:
            return leaving
        claimed = self._claimed_ids()
        with closing(connection.execute(_BY_AGE)) as cursor:
            for row_id, events, size, created_ns in cursor:
                if row_id in claimed:  # it is on its way, and would be counted twice
                    continue
                if self._max_age_ns and created_ns < now_ns - self._max_age_ns:
                    leaving.append((row_id, events, size, "expired"))
                elif over > 0:
                    leaving.append((row_id, events, size, "spool_full"))
                else:
                    break
                over -= size
        return leaving

    def _oldest(
        self, connection: sqlite3.Connection, lane: str, max_events: int, max_bytes: int
    ) -> list[tuple[int, bytes]]:
        rows: list[tuple[int, bytes]] = []
        claimed = self._claimed[lane] = {}
        with closing(connection.execute(_BY_LANE, (lane,))) as cursor:
            for row_id, *stored in cursor:
                row = self._owed.get(row_id, Row(lane, *stored))
                if row is None:
                    continue
                max_events -= row.events
                max_bytes -= row.bytes
                if rows and (max_events < 0 or max_bytes < 0):
                    break
                rows.append((row_id, row.body))
                claimed[row_id] = (row.events, _stored_bytes(row))
        return rows

    def _unclaimed(
        self, connection: sqlite3.Connection, max_bytes: int
    ) -> tuple[list[tuple[int, Row]], bool]:
        claimed = self._claimed_ids()
        rows: list[tuple[int, Row]] = []
        with closing(connection.execute(_WHOLE_ROWS)) as cursor:
            for row_id, *stored in cursor:
                if row_id in claimed:
                    continue
                if max_bytes <= 0:
                    return rows, False
                row = Row(*stored)
                rows.append((row_id, row))
                max_bytes -= _stored_bytes(row)
        return rows, True

    def _remove(self, connection: sqlite3.Connection, rows: Sequence[tuple[int, Row]]) -> None:
        with self._transaction(connection):
            connection.executemany(_DELETE, [(row_id,) for row_id, _ in rows])
        self._events -= sum(row.events for _, row in rows)
        self._bytes -= sum(_stored_bytes(row) for _, row in rows)

    def _claimed_ids(self) -> set[int]:
        return {row_id for rows in self._claimed.values() for row_id in rows}

    def _leave(self, lane: str, left: dict[int, Row | None], reason: str | None = None) -> None:
        """Take rows of a lane's claim out, or put others in their place."""
        with process_lock():
            claimed = self._claimed.get(lane, {})
            for row_id, row in left.items():
                events, size = claimed.pop(row_id, (0, 0))
                if not events:
                    continue  # settled before
                if reason is not None:
                    self._dropped[reason] += events
                self._owed[row_id] = row
                self._events -= events - (row.events if row else 0)
                self._bytes -= size - (_stored_bytes(row) if row else 0)
            if not self._owed:
                return
            try:
                self._run(self._pay)
            except SpoolError as error:
                self._notices.append(("spool_settle", f"the spool cannot be updated: {error}"))
                if not self._events:
                    self.delete()
        self._tell()

    def _pay(self, connection: sqlite3.Connection) -> None:
        with self._transaction(connection):
            pass
        if connection.in_transaction or self._events or connection.execute(_ANY).fetchone():
            return
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        if pages * page_bytes > _REPLACE_BYTES:
            self.delete()

    def _rebuild(self, why: str) -> None:
        """Move the damaged file aside and begin a new one with what can be read of it."""
        if self.path is None:
            raise SpoolError(why)
        self._disconnect()
        expected, owed = self._events, self._owed
        self._forget()
        try:
            aside = move_aside(self.path)
            saved = self._guarded(lambda connection: self._restore(connection, aside, owed))
        except (OSError, SpoolError) as error:
            self._dropped["damaged"] += expected
            raise SpoolError(f"{why}; a new file cannot be made: {error}") from error
        self._dropped["damaged"] += max(0, expected - saved)
        self._notices.append(
            (
                "spool_damaged",
                f"the spool file was damaged ({why}); it was moved aside as {aside}, "
                f"and {saved} events of it were saved",
            )
        )

    def _restore(
        self, connection: sqlite3.Connection, aside: Path, owed: dict[int, Row | None]
    ) -> int:
        events = size = 0
        with self._transaction(connection):
            for row_id, stored in salvage(aside):
                row = owed.get(row_id, stored)
                if row is not None:
                    connection.execute(_INSERT_AS, (row_id, *row))
                    events += row.events
                    size += _stored_bytes(row)
        self._events += events
        self._bytes += size
        return events

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def _forget(self) -> None:
        self._events = self._bytes = 0
        self._claimed = {}
        self._owed = {}
        self._loaded = False

    def _tell(self) -> None:
        with process_lock():
            dropped, self._dropped = self._dropped, Counter()
            notices, self._notices = self._notices, []
        for reason, events in dropped.items():
            if events:
                self._on_dropped(reason, events)
        for cause, message in notices:
            self._on_notice(cause, message)


def _stored_bytes(row: Row) -> int:
    return len(row.body) + _ROW_OVERHEAD_BYTES


def _left(claim: Claim, kept: Sequence[Record]) -> dict[int, Row | None]:
    """Say what becomes of a claim's rows: gone, or shorter; those kept whole are left out."""
    waiting = Counter(kept)
    left: dict[int, Row | None] = {}
    start = 0
    for row_id, events in zip(claim.row_ids, claim.row_events, strict=True):
        records = claim.records[start : start + events]
        start += events
        stay = []
        for record in records:
            if waiting[record] > 0:
                waiting[record] -= 1
                stay.append(record)
        if len(stay) < events:
            left[row_id] = pack_row(claim.lane, stay, 0) if stay else None
    if any(waiting.values()):
        raise ValueError("kept holds records that are not of this claim")
    return left

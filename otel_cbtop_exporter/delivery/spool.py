"""Records waiting for one sink, in one SQLite database: in memory, or in one file.

Belongs here: append, claim, settle, and eviction of records that are too many or too old. Not
here: how rows are stored (`spool_store.py`), which process owns which file (`spool_files.py`),
and what happens while the disk cannot be used (`spool_folder.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from otel_cbtop_exporter.delivery import spool_queries as queries
from otel_cbtop_exporter.delivery.spool_claim import Claim, SpoolStats
from otel_cbtop_exporter.delivery.spool_lock import spool_lock
from otel_cbtop_exporter.delivery.spool_reports import Reports, reporting
from otel_cbtop_exporter.delivery.spool_rows import Row, SpoolError, rows_of, unpack
from otel_cbtop_exporter.delivery.spool_store import RowStore
from otel_cbtop_exporter.sinks.base import Record, Records
from otel_cbtop_exporter.tally import Tally

__all__ = ["DEFAULT_MEMORY_BYTES", "Claim", "Spool", "SpoolError", "SpoolStats"]

DEFAULT_MEMORY_BYTES = 64 * 1024 * 1024


class Spool:
    """Records waiting for one sink, kept in a SQLite database.

    Promises, each with a test of that name in tests/delivery/test_spool*.py: an appended
    record survives a killed process (in a file); a record leaves only by settle or counted,
    as `spool_full`, `expired`, `damaged` or `shutdown`; records of a lane are claimed in the
    order in which they were appended; what a claim kept stays where it was; a failed settle
    sends records twice at worst, never not at all; a fork neither hangs nor loses a record.

    Nothing is opened before the first use. Thread-safe, because all calls hold the process's spool
    lock, but only one thread may claim. In a forked child a file still belongs to the parent and
    every call raises; a spool in memory starts empty.

    Args:
        path: A file in a folder of ours, made if it is missing; None for memory.
        max_bytes: How much may wait, compressed; the oldest rows leave first.
        max_age_ms: Rows older than this leave; 0 keeps them. Age goes by the appender's clock.
        synchronous: `normal` survives a killed process, `full` also a power cut.
        reports: Where to report what left without being settled; spools of one folder share it.
        time_ns: Nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        max_bytes: int = DEFAULT_MEMORY_BYTES,
        max_age_ms: int = 0,
        synchronous: Literal["normal", "full"] = "normal",
        reports: Reports | None = None,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.max_age_ns = max_age_ms * 1_000_000
        self._time_ns = time_ns
        self._reports = reports or Reports()
        self._store = RowStore(path, synchronous, self._reports)

    def append(self, records: Sequence[Record]) -> None:
        """Take records; when this returns, they are committed.

        Args:
            records: Of any lanes; their order within a lane is kept.

        Raises:
            SpoolError: They cannot be stored now, and none of them was taken.
        """
        rows = rows_of(records, self._time_ns())
        if self.path is not None or not self._leave_soon(rows):
            rows = [row.packed() for row in rows]  # without the lock: this takes half a millisecond
        self.append_rows(rows)

    @reporting
    def append_rows(self, rows: Sequence[Row]) -> None:
        """Take records that are already in rows, as `append` does."""
        if rows:
            self._store.insert(rows, self.max_bytes, self._too_old(rows))

    def spools(self) -> Sequence[Spool]:
        """Return the spools to empty, in order: here only this one."""
        return (self,)

    def adopt(self) -> int:
        """Take over what dead processes left: here nothing."""
        return 0

    @reporting
    def lanes(self) -> list[str]:
        """Return the lanes that have records, the one with the oldest record first.

        Raises:
            SpoolError: The spool cannot be read.
        """
        return [] if self._store.is_known_empty() else self._store.run(queries.lanes)

    def claim(self, lane: str, max_events: int, max_bytes: int) -> Claim | None:
        """Hand out the oldest records of a lane; they stay in the spool until they are settled.

        A new claim of a lane replaces the previous one.

        Args:
            lane: Which lane.
            max_events: The most records. Whole rows are claimed, so the first row may hold more.
            max_bytes: The most bytes of bodies, likewise.

        Returns:
            A claim with at least one record, or None if the lane has none.

        Raises:
            SpoolError: The spool cannot be read.
        """
        if self.max_age_ns:
            with suppress(SpoolError):  # then too old records are sent after all
                self.evict()
        while rows := self._claim_rows(lane, max_events, max_bytes):
            unpacked = {row_id: row.records or unpack(row.body) for row_id, row in rows.items()}
            readable = {row_id: records for row_id, records in unpacked.items() if records}
            if len(readable) < len(rows):
                self._drop_damaged(lane, unpacked.keys() - readable.keys())
            if readable:
                return Claim(lane, readable, Records.joined(readable.values()), self)
        return None

    def settle(self, claim: Claim, kept: Sequence[Record] = ()) -> None:
        """Remove the records of a claim, except those to be tried again.

        If the disk refuses, no later claim returns the records anyway, and the database is updated
        with the next transaction that succeeds; a crash before that sends them twice.

        Args:
            claim: From this spool; settling it a second time does nothing.
            kept: Records of the claim that stay in their rows, in their order.

        Raises:
            ValueError: `kept` holds a record that the claim does not.
        """
        self._end_claim(claim.lane, claim.rows_left(kept))  # without the lock: this packs rows

    @reporting
    def forget_claims(self) -> None:
        """Let claimed records be claimed, moved or evicted like all others."""
        self._store.ledger.forget_claims()

    @reporting
    def evict(self) -> None:
        """Drop and count the oldest rows until at most `max_bytes` wait and none is too old.

        Raises:
            SpoolError: The spool cannot be changed now.
        """
        if self._store.ledger.waiting.events:
            self._store.insert((), self.max_bytes, self._too_old())

    @reporting
    def hand_over(self, target: Spool, max_bytes: int) -> bool:
        """Move the oldest unclaimed rows to the end of another spool.

        Args:
            target: Where to move them.
            max_bytes: About how much to move, compressed.

        Returns:
            Whether no unclaimed row is left.

        Raises:
            SpoolError: One of the two cannot be read or changed now; nothing is lost.
        """
        rows, whole = self._store.unclaimed(max_bytes)
        target.append_rows([row.packed() for row in rows.values()])
        self._store.remove(rows)
        return whole

    @reporting
    def open(self) -> None:
        """Open the database and count its rows now, not only at the first use.

        Raises:
            SpoolError: The spool cannot be read.
        """
        self._store.run(queries.count)

    @reporting
    def stats(self) -> SpoolStats:
        """Return what is waiting; a file that has not been used yet counts as empty."""
        oldest_ns = None
        ledger = self._store.ledger
        with suppress(SpoolError):  # the next claim or append meets the error
            oldest_ns = self.oldest_ns()
        return SpoolStats(ledger.waiting, ledger.stored_bytes, oldest_ns)

    @reporting
    def oldest_ns(self) -> int | None:
        """Return when the first record was appended; None if nothing is known to wait.

        Raises:
            SpoolError: The spool cannot be read.
        """
        waits = self._store.ledger.waiting.events
        return self._store.run(queries.oldest_ns) if waits else None

    @reporting
    def newest_ns(self) -> int | None:
        """Return when the newest record was appended; None if nothing waits.

        Raises:
            SpoolError: The spool cannot be read.
        """
        return None if self._store.is_known_empty() else self._store.run(queries.newest_ns)

    @reporting
    def has_up_to(self, created_ns: int) -> bool:
        """Return whether a record waits that was appended at `created_ns` or earlier.

        Raises:
            SpoolError: The spool cannot be read.
        """
        if self._store.is_known_empty():
            return False
        return self._store.run(lambda connection: queries.has_up_to(connection, created_ns))

    @reporting
    def was_removed(self) -> bool:
        """Whether somebody removed the open file, so that its content ends with this process."""
        return self._store.database.was_removed()

    @reporting
    def close(self) -> SpoolStats:
        """Close the database; a later call opens it again.

        The content of a spool that cannot be opened again (one in memory, or a file that was
        removed) is dropped and counted as `shutdown`.

        Returns:
            What is left for whoever opens it next.
        """
        left = self.stats()
        if self.path is None or self._store.database.was_removed():
            self._reports.drop("shutdown", left.waiting)
            left = SpoolStats(Tally(), 0, None)
        self._store.close()
        return left

    @reporting
    def delete(self) -> None:
        """Close the database and delete it, whatever it holds.

        Raises:
            OSError: The folder does not allow it.
        """
        self._store.delete()

    @reporting
    def _claim_rows(self, lane: str, max_events: int, max_bytes: int) -> dict[int, Row]:
        if self._store.is_known_empty():
            return {}
        return self._store.claim(lane, max_events, max_bytes)

    @reporting
    def _drop_damaged(self, lane: str, row_ids: Iterable[int]) -> None:
        self._reports.drop("damaged", self._store.change(lane, dict.fromkeys(row_ids)))

    @reporting
    def _end_claim(self, lane: str, left: Mapping[int, Row | None]) -> None:
        self._store.change(lane, left)
        self._store.ledger.end_claim(lane)

    def _leave_soon(self, rows: Sequence[Row]) -> bool:
        """Return whether so little waits that these rows need not be packed yet."""
        with spool_lock():
            return self._store.is_recent(sum(row.body_bytes for row in rows), self.max_bytes)

    def _too_old(self, new: Sequence[Row] = ()) -> int:
        """Return the time before which a row is too old; 0 if rows have no age limit."""
        if not self.max_age_ns:
            return 0
        now_ns = self._time_ns()
        # As of the newest row, so that none leaves with its own append.
        newest_ns = max((row.created_ns for row in new), default=now_ns)
        return min(now_ns, newest_ns) - self.max_age_ns

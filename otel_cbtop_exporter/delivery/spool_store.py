"""The rows of one database and their totals: what `spool.py` stores records in.

Belongs here: transactions over the rows, the state beside them, and the replacement of a damaged
file. Not here: what is in a row's body.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal, TypeVar

from otel_cbtop_exporter.delivery import spool_queries as queries
from otel_cbtop_exporter.delivery.spool_damage import rebuild
from otel_cbtop_exporter.delivery.spool_database import DamagedError, Database
from otel_cbtop_exporter.delivery.spool_ledger import Ledger
from otel_cbtop_exporter.delivery.spool_lock import watch_forks
from otel_cbtop_exporter.delivery.spool_reports import Reports
from otel_cbtop_exporter.delivery.spool_rows import Row, SpoolError
from otel_cbtop_exporter.own_log import were
from otel_cbtop_exporter.tally import Tally

__all__ = ["RowStore"]

# Records are also kept as they came, as long as no more than this waits: a healthy backend takes
# them long before it is reached.
_RECENT_BYTES = 8 * 1024 * 1024
# A database that has grown past this is replaced once it is empty: SQLite keeps its pages for ever,
# and a VACUUM after a peak takes as long as writing the peak did.
_REPLACE_BYTES = 16 * 1024 * 1024

_T = TypeVar("_T")


class RowStore:
    """The rows of one spool; every call needs the spool lock and may raise SpoolError.

    Args:
        path: A file, or None for memory.
        synchronous: See `Spool`.
        reports: Where to report drops and problems.
    """

    def __init__(
        self, path: Path | None, synchronous: Literal["normal", "full"], reports: Reports
    ) -> None:
        self.database = Database(path, synchronous, self._count)
        self.ledger = Ledger()
        self._reports = reports
        watch_forks(self)

    def run(self, operation: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run an operation on the connection; if the file is damaged, again on a rebuilt one."""
        try:
            return self.database.run(operation)
        except DamagedError as error:
            self._rebuild(str(error))
            return self.database.run(operation)

    def insert(self, rows: Sequence[Row], max_bytes: int, created_before_ns: int) -> None:
        """Add rows at the end and evict the oldest, in one transaction.

        Args:
            rows: The new rows; may be empty.
            max_bytes: How much may be stored afterwards; claimed rows stay even beyond that.
            created_before_ns: Rows at the head that were appended before this time are evicted.
        """
        row_ids: list[int] = []

        def work(connection: sqlite3.Connection) -> list[queries.Leaving]:
            row_ids[:] = [queries.insert(connection, row) for row in rows]
            excess = self.ledger.stored_bytes + sum(row.stored_bytes for row in rows) - max_bytes
            stay = self.ledger.claimed_ids()
            leaving = queries.leaving(connection, excess, created_before_ns, stay)
            queries.delete(connection, [row.row_id for row in leaving])
            # Before the commit: a row without a body is nothing without its records.
            for row_id, row in zip(row_ids, rows, strict=True):
                keeps = not row.body or self.is_recent(row.body_bytes, max_bytes)
                self.ledger.recent.put(row_id, row.records if keeps else None)
            return leaving

        try:
            leaving = self._transact(work)
            for row in rows:
                self.ledger.add(row)
            for gone in leaving:
                self.ledger.recent.put(gone.row_id, None)
                self.ledger.subtract(gone.tally, gone.stored_bytes)
                self._reports.drop(gone.reason, gone.tally)
        except SpoolError:  # nothing was inserted
            for row_id in row_ids:
                self.ledger.recent.put(row_id, None)
            raise
        except BaseException:  # a signal handler raised, perhaps after the commit
            with suppress(SpoolError):
                self.run(self._count)
            raise

    def is_recent(self, body_bytes: int, max_bytes: int) -> bool:
        """Return whether so little waits that new rows are worth keeping as they came.

        Args:
            body_bytes: The size of the rows' bodies.
            max_bytes: How much the spool may hold.
        """
        there = max(self.ledger.stored_bytes, self.ledger.recent.body_bytes)
        return there + body_bytes <= min(_RECENT_BYTES, max_bytes // 8)

    def claim(self, lane: str, max_events: int, max_bytes: int) -> dict[int, Row]:
        """Hand out the oldest rows of a lane by their ids; at least one, if there is any."""
        rows = self.run(lambda connection: self._oldest(connection, lane, max_events, max_bytes))
        self.ledger.claim(lane, rows)
        return rows

    def change(self, lane: str, left: Mapping[int, Row | None]) -> Tally:
        """Remove or replace rows of a lane's claim; never raises.

        Args:
            lane: The claim's lane.
            left: By row id, what is left of the row; None for nothing.

        Returns:
            What is gone as a result.
        """
        gone = self.ledger.owe(lane, left)
        if not self.ledger.owed:
            return gone
        try:
            self._transact(lambda _: None)
        except SpoolError as error:
            self._reports.note("spool_settle", f"a spool cannot be updated: {error}")
        with suppress(SpoolError, OSError):  # then the database is replaced another time
            if not self.ledger.waiting.events and self.run(self._is_spent):
                self.delete()
        return gone

    def unclaimed(self, max_bytes: int) -> tuple[dict[int, Row], bool]:
        """Return the oldest unclaimed rows, and whether these are all of them."""
        return self.run(lambda connection: self._unclaimed(connection, max_bytes))

    def remove(self, rows: Mapping[int, Row]) -> None:
        """Remove rows that have been moved somewhere else."""
        self._transact(lambda connection: queries.delete(connection, rows))
        for row_id, row in rows.items():
            self.ledger.recent.put(row_id, None)
            self.ledger.subtract(row.tally, row.stored_bytes)

    def is_known_empty(self) -> bool:
        """Whether the spool is known to be empty without asking the database."""
        return self.ledger.counted and not self.ledger.waiting.events

    def close(self) -> None:
        """Close the database and forget what is known about it."""
        self.ledger = Ledger()
        self.database.close()

    def delete(self) -> None:
        """Delete the database, whatever it holds.

        Raises:
            OSError: The folder does not allow it.
        """
        self.database.delete()
        self.ledger = Ledger()
        self.ledger.counted = True  # so that looking for records does not create it again

    def before_fork(self) -> None:
        """Do nothing: the database closes itself."""

    def after_fork_in_child(self) -> None:
        """Forget the parent's rows and reports: they are its own."""
        self.ledger = Ledger()
        self._reports.forget()

    def _rebuild(self, why: str) -> None:
        path = self.database.path
        if path is None:
            raise SpoolError(why)
        before = self.ledger
        # A new ledger: records at hand may be of rows that are gone, or shorter by now.
        self.ledger = Ledger()
        try:
            aside = rebuild(self.database, path, before.owed)
            self.ledger.adopt_claims(before)
            self.database.run(self._count)
        except (OSError, SpoolError) as error:
            self._reports.drop("damaged", before.waiting)
            raise SpoolError(f"{why}, and a new file cannot be made: {error}") from error
        self._reports.drop("damaged", before.waiting - self.ledger.waiting)
        saved = self.ledger.waiting.events
        self._reports.note(
            "spool_damaged",
            f"a spool file was damaged ({why}) and is kept as {aside}; {were(saved)} saved",
        )

    def _count(self, connection: sqlite3.Connection) -> None:
        """Count a database that was just opened, or reopened because a fork had closed it."""
        ledger = self.ledger
        ledger.forget_lost(connection)
        if ledger.owed:
            return
        waiting, stored_bytes = queries.count(connection)
        self._reports.drop("damaged", ledger.waiting - waiting)
        ledger.counted = True
        ledger.waiting, ledger.stored_bytes = waiting, stored_bytes

    def _transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` in one transaction that also makes the owed changes."""

        def pay_and_work(connection: sqlite3.Connection) -> _T:
            self.ledger.pay(connection)
            return work(connection)

        result = self.run(lambda connection: self.database.transact(connection, pay_and_work))
        for row_id, row in self.ledger.owed.items():
            self.ledger.recent.put(row_id, None if row is None else row.records)
        self.ledger.owed.clear()
        return result

    def _oldest(
        self, connection: sqlite3.Connection, lane: str, max_events: int, max_bytes: int
    ) -> dict[int, Row]:
        chosen: dict[int, Row] = {}
        with closing(queries.rows_of_lane(connection, lane)) as rows:
            for row_id, stored in rows:
                row = self._now(row_id, stored)
                if row is None:
                    continue
                max_events -= row.events
                max_bytes -= row.body_bytes
                if chosen and (max_events < 0 or max_bytes < 0):
                    break
                chosen[row_id] = row
        return chosen

    def _unclaimed(
        self, connection: sqlite3.Connection, max_bytes: int
    ) -> tuple[dict[int, Row], bool]:
        claimed = self.ledger.claimed_ids()
        chosen: dict[int, Row] = {}
        with closing(queries.rows_oldest_first(connection)) as rows:
            for row_id, stored in rows:
                if row_id in claimed:
                    continue
                if max_bytes <= 0:
                    return chosen, False
                row = self._now(row_id, stored)
                if row is not None:
                    chosen[row_id] = row
                    max_bytes -= row.stored_bytes
        return chosen, True

    def _now(self, row_id: int, stored: Row) -> Row | None:
        """Return the current state of a stored row, with its records if they are at hand."""
        if row_id in self.ledger.owed:
            left = self.ledger.owed[row_id]
            return None if left is None else left._replace(created_ns=stored.created_ns)
        records = self.ledger.recent.get(row_id)
        return stored if records is None else stored._replace(records=records)

    def _is_spent(self, connection: sqlite3.Connection) -> bool:
        """Whether to replace the database: no row is needed, and it is large or owed changes."""
        if connection.in_transaction or not queries.is_empty(connection, self.ledger.owed):
            return False
        return bool(self.ledger.owed) or queries.file_bytes(connection) > _REPLACE_BYTES

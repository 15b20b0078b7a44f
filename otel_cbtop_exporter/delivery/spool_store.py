"""Rows in one database, counted: what `spool.py` makes of records, and a damaged file's end.

Belongs here: transactions over the rows, and the state beside them. Not here: what is in a
row's body.
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

# Of bodies that are kept as they came, while no more than that waits: what a backend that is
# well takes is on its way long before.
_RECENT_BYTES = 8 * 1024 * 1024
# A database that grew past this is replaced once it is empty: SQLite keeps its pages for ever,
# and VACUUM of a peak takes as long as writing it did.
_REPLACE_BYTES = 16 * 1024 * 1024

_T = TypeVar("_T")


class RowStore:
    """The rows of one spool; every call needs the spool lock, and raises SpoolError.

    Args:
        path: A file, or None for memory.
        synchronous: See `Spool`.
        reports: Where to say what was dropped, and what is wrong.
    """

    def __init__(
        self, path: Path | None, synchronous: Literal["normal", "full"], reports: Reports
    ) -> None:
        self.database = Database(path, synchronous, self._count)
        self.ledger = Ledger()
        self._reports = reports
        watch_forks(self)

    def run(self, operation: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do something with the connection; with a new file, where the old one was damaged."""
        try:
            return self.database.run(operation)
        except DamagedError as error:
            self._rebuild(str(error))
            return self.database.run(operation)

    def insert(self, rows: Sequence[Row], max_bytes: int, created_before_ns: int) -> None:
        """Add rows at the end and let the oldest go, in one transaction.

        Args:
            rows: May be none.
            max_bytes: What may be there then; claimed rows stay over that.
            created_before_ns: Rows at the head that were appended before have to go.
        """

        def work(connection: sqlite3.Connection) -> tuple[list[int], list[queries.Leaving]]:
            row_ids = [queries.insert(connection, row) for row in rows]
            excess = self.ledger.stored_bytes + sum(row.stored_bytes for row in rows) - max_bytes
            stay = self.ledger.claimed_ids()
            leaving = queries.leaving(connection, excess, created_before_ns, stay)
            queries.delete(connection, [row.row_id for row in leaving])
            return row_ids, leaving

        row_ids, leaving = self._transact(work)
        for row_id, row in zip(row_ids, rows, strict=True):
            keeps = not row.body or self.is_recent(row.body_bytes, max_bytes)
            self.ledger.recent.put(row_id, row.records if keeps else None)
            self.ledger.add(row)
        for gone in leaving:
            self.ledger.recent.put(gone.row_id, None)
            self.ledger.subtract(gone.tally, gone.stored_bytes)
            self._reports.drop(gone.reason, gone.tally)

    def is_recent(self, body_bytes: int, max_bytes: int) -> bool:
        """Say whether rows with so much are worth keeping as they came.

        Args:
            body_bytes: Of the rows' bodies.
            max_bytes: What may be there at most.
        """
        there = max(self.ledger.stored_bytes, self.ledger.recent.body_bytes)
        return there + body_bytes <= min(_RECENT_BYTES, max_bytes // 8)

    def claim(self, lane: str, max_events: int, max_bytes: int) -> dict[int, Row]:
        """Hand out the oldest rows of a lane, by their ids; at least one, if there is one."""
        rows = self.run(lambda connection: self._oldest(connection, lane, max_events, max_bytes))
        self.ledger.claim(lane, rows)
        return rows

    def change(self, lane: str, left: Mapping[int, Row | None]) -> Tally:
        """Take rows of a lane's claim out, or put others in their place; never raises.

        Args:
            lane: Of the claim.
            left: By row id what is left of it, None for nothing.

        Returns:
            What is gone by that.
        """
        gone = self.ledger.owe(lane, left)
        if not self.ledger.owed:
            return gone
        try:
            self._transact(lambda _: None)
        except SpoolError as error:
            self._reports.note("spool_settle", f"a spool cannot be updated: {error}")
        with suppress(SpoolError, OSError):  # then it is replaced another time
            if not self.ledger.waiting.events and self.run(self._is_spent):
                self.delete()
        return gone

    def unclaimed(self, max_bytes: int) -> tuple[dict[int, Row], bool]:
        """Return the oldest rows that are not handed out, and whether these are all of them."""
        return self.run(lambda connection: self._unclaimed(connection, max_bytes))

    def remove(self, rows: Mapping[int, Row]) -> None:
        """Take rows out that are somewhere else now."""
        self._transact(lambda connection: queries.delete(connection, rows))
        for row_id, row in rows.items():
            self.ledger.recent.put(row_id, None)
            self.ledger.subtract(row.tally, row.stored_bytes)

    def is_known_empty(self) -> bool:
        """Whether there is nothing, as far as that can be said without opening the database."""
        return self.ledger.counted and not self.ledger.waiting.events

    def close(self) -> None:
        """Close the database and forget what is known of it."""
        self.ledger = Ledger()
        self.database.close()

    def delete(self) -> None:
        """Remove the database, whatever it holds.

        Raises:
            OSError: The folder does not allow it.
        """
        self.database.delete()
        self.ledger = Ledger()
        self.ledger.counted = True  # so that looking for records does not make it anew

    def before_fork(self) -> None:
        """Nothing: the database closes itself."""

    def after_fork_in_child(self) -> None:
        """Leave to the parent what it has, and what there is to say of it."""
        self.ledger = Ledger()
        self._reports.forget()

    def _rebuild(self, why: str) -> None:
        path = self.database.path
        if path is None:
            raise SpoolError(why)
        before = self.ledger
        # Whatever is at hand may be of rows that are gone, or shorter by now.
        self.ledger = Ledger()
        try:
            aside = rebuild(self.database, path, before.owed)
            self.database.run(self._count)
        except (OSError, SpoolError) as error:
            self._reports.drop("damaged", before.waiting)
            raise SpoolError(f"{why}, and a new file cannot be made: {error}") from error
        self.ledger.adopt_claims(before)
        self._reports.drop("damaged", before.waiting - self.ledger.waiting)
        saved = self.ledger.waiting.events
        self._reports.note(
            "spool_damaged",
            f"a spool file was damaged ({why}) and is kept as {aside}; {were(saved)} saved",
        )

    def _count(self, connection: sqlite3.Connection) -> None:
        """Count a database that was opened just now; again, where a fork had closed it."""
        ledger = self.ledger
        if ledger.owed:
            return
        waiting, stored_bytes = queries.count(connection)
        self._reports.drop("damaged", ledger.waiting - waiting)
        ledger.counted = True
        ledger.waiting, ledger.stored_bytes = waiting, stored_bytes

    def _transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do something in one transaction, in which the database is paid what is owed to it."""

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
        """Return what a stored row is by now, with its records if they are at hand."""
        if row_id in self.ledger.owed:
            left = self.ledger.owed[row_id]
            return None if left is None else left._replace(created_ns=stored.created_ns)
        records = self.ledger.recent.get(row_id)
        return stored if records is None else stored._replace(records=records)

    def _is_spent(self, connection: sqlite3.Connection) -> bool:
        """Whether a new database is better than this one: it is empty, and large or in debt."""
        if connection.in_transaction or not queries.is_empty(connection, self.ledger.owed):
            return False
        return bool(self.ledger.owed) or queries.file_bytes(connection) > _REPLACE_BYTES

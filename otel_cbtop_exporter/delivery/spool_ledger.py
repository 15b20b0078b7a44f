"""What a spool knows about its rows without asking the database: sums, claims, owed changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from otel_cbtop_exporter.delivery import spool_queries as queries
from otel_cbtop_exporter.delivery.spool_rows import Row
from otel_cbtop_exporter.sinks.base import Records
from otel_cbtop_exporter.tally import Tally

__all__ = ["Ledger"]


class Recent:
    """Records of the newest rows, so that claiming them soon needs no unpacking.

    Attributes:
        body_bytes: The size of all their bodies.
    """

    def __init__(self) -> None:
        self.body_bytes = 0
        self._records: dict[int, Records] = {}

    def get(self, row_id: int) -> Records | None:
        """Return the records of a row; None if they are not at hand."""
        return self._records.get(row_id)

    def put(self, row_id: int, records: Records | None) -> None:
        """Note the records of a row; None for a row that is gone or whose records are not kept."""
        if (before := self._records.pop(row_id, None)) is not None:
            self.body_bytes -= before.body_bytes
        if records is not None:
            self._records[row_id] = records
            self.body_bytes += records.body_bytes


class Ledger:
    """The state of one spool beside its database; every call needs the spool lock.

    Attributes:
        recent: Records that are at hand, by the id of their row.
        counted: Whether the database has been counted, so that the sums mean something.
        waiting: How many records wait.
        stored_bytes: How many bytes they take.
        owed: Changes that settle owes to the database: rows to remove, or to replace by what was
            kept. The sums include them already. They are paid at once or, if the disk refuses,
            with the next transaction.
    """

    def __init__(self) -> None:
        self.recent = Recent()
        self.counted = False
        self.waiting = Tally()
        self.stored_bytes = 0
        self.owed: dict[int, Row | None] = {}
        # By lane, the rows of the newest claim: how many records, and their stored bytes.
        self._claimed: dict[str, dict[int, tuple[Tally, int]]] = {}

    def add(self, row: Row) -> None:
        """Count a row that is in the database now."""
        self.waiting += row.tally
        self.stored_bytes += row.stored_bytes

    def subtract(self, tally: Tally, stored_bytes: int) -> None:
        """Subtract what is gone from the database."""
        self.waiting -= tally
        self.stored_bytes -= stored_bytes

    def claim(self, lane: str, rows: Mapping[int, Row]) -> None:
        """Remember which rows of a lane are claimed; they replace those of the previous claim."""
        self._claimed[lane] = {
            row_id: (row.tally, row.stored_bytes) for row_id, row in rows.items()
        }

    def end_claim(self, lane: str) -> None:
        """Forget the claim of a lane."""
        self._claimed.pop(lane, None)

    def forget_claims(self) -> None:
        """Forget the claims of all lanes."""
        self._claimed.clear()

    def claimed_ids(self) -> set[int]:
        """Return the ids of the claimed rows of all lanes."""
        return {row_id for rows in self._claimed.values() for row_id in rows}

    def owe(self, lane: str, left: Mapping[int, Row | None]) -> Tally:
        """Remove claimed rows of a lane, or replace them; the database is told later.

        Args:
            lane: The claim's lane.
            left: By row id, what is left of the row, or None. Rows that are not claimed (any more)
                are ignored.

        Returns:
            What is gone as a result.
        """
        gone = Tally()
        claimed = self._claimed.get(lane, {})
        for row_id, row in left.items():
            if row_id not in claimed:
                continue
            tally, stored_bytes = claimed.pop(row_id)
            gone += tally
            self.subtract(tally, stored_bytes)
            self.owed[row_id] = row
            if row is not None:
                self.add(row)
                gone -= row.tally
        return gone

    def pay(self, connection: sqlite3.Connection) -> None:
        """Make the owed changes in the database; the caller clears `owed` after the commit."""
        queries.delete(connection, [row_id for row_id, row in self.owed.items() if row is None])
        for row_id, row in self.owed.items():
            if row is not None:
                queries.replace(connection, row_id, row)

    def adopt_claims(self, other: Ledger) -> None:
        """Take over the claims of the previous ledger; the rows must have kept their ids."""
        self._claimed = other._claimed

    def forget_lost(self, connection: sqlite3.Connection) -> None:
        """Forget claims of, and owed changes to, rows that are not in the database.

        New rows may get their ids.
        """
        known: list[dict[int, Any]] = [*self._claimed.values(), self.owed]
        for rows in known:
            for row_id in [one for one in rows if not queries.has(connection, one)]:
                del rows[row_id]

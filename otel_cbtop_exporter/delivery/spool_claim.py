"""What a spool hands out, and the statistics it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from otel_cbtop_exporter.delivery.spool_rows import Row, row_of
from otel_cbtop_exporter.sinks.base import Record, Records
from otel_cbtop_exporter.tally import Tally

if TYPE_CHECKING:
    from otel_cbtop_exporter.delivery.spool import Spool

__all__ = ["Claim", "SpoolStats", "sum_of"]


class Claim(msgspec.Struct):
    """Records that were handed out for sending and are still in their spool.

    Attributes:
        lane: The lane of every record.
        rows: The records of each row by its id, oldest row first.
        records: All records, in that order.
        spool: Where the records are and must be settled.
    """

    lane: str
    rows: dict[int, Records]
    records: Records
    spool: Spool

    def rows_left(self, kept: Sequence[Record]) -> dict[int, Row | None]:
        """Return what becomes of the rows if only some records are kept.

        Args:
            kept: Records of this claim, in any order.

        Returns:
            By row id, None for a row that is gone, or what is left of one that is shorter. Rows
            that are kept whole are left out.

        Raises:
            ValueError: `kept` holds a record that the claim does not.
        """
        if not kept:
            return dict.fromkeys(self.rows)
        if Records.of(kept).blocks == self.records.blocks:  # compared without making any Record
            return {}
        waiting = Counter(kept)
        left: dict[int, Row | None] = {}
        for row_id, records in self.rows.items():
            stay = []
            for record in records:
                if waiting[record] > 0:
                    waiting[record] -= 1
                    stay.append(record)
            if len(stay) < len(records):
                left[row_id] = row_of(Records.of(stay), 0).packed() if stay else None
        if any(waiting.values()):
            raise ValueError("kept holds records that are not of this claim")
        return left


class SpoolStats(msgspec.Struct, frozen=True):
    """What is waiting.

    Attributes:
        waiting: How many records, in total and by signal.
        spool_bytes: What they take: compressed, except for the first few MiB in memory.
        oldest_ns: When the oldest was appended, nanoseconds since the Unix epoch; None if
            nothing waits.
    """

    waiting: Tally
    spool_bytes: int
    oldest_ns: int | None

    @property
    def events_spooled(self) -> int:
        """How many records wait."""
        return self.waiting.events


def sum_of(parts: Sequence[SpoolStats]) -> SpoolStats:
    """Return what waits in several spools together."""
    oldest = [part.oldest_ns for part in parts if part.oldest_ns is not None]
    return SpoolStats(
        sum((part.waiting for part in parts), Tally()),
        sum(part.spool_bytes for part in parts),
        min(oldest, default=None),
    )

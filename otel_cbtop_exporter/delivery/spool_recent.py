"""The records of a spool's newest rows, so that who claims them soon has nothing to unpack."""

from __future__ import annotations

from otel_cbtop_exporter.sinks.base import Records

__all__ = ["Recent"]


class Recent:
    """Records as they were appended, by the id of their row; every call needs the process lock.

    Attributes:
        body_bytes: Of all their bodies.
    """

    def __init__(self) -> None:
        self.body_bytes = 0
        self._records: dict[int, Records] = {}

    def get(self, row_id: int) -> Records | None:
        """Return what is in a row; None if that is not known here."""
        return self._records.get(row_id)

    def put(self, row_id: int, records: Records | None) -> None:
        """Note what is in a row from now on; None for a row that is gone, or not to be known."""
        if (before := self._records.pop(row_id, None)) is not None:
            self.body_bytes -= before.body_bytes
        if records is not None:
            self._records[row_id] = records
            self.body_bytes += records.body_bytes

"""What is done with a spool file that is not a database any more: set aside, and read."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path

from otel_cbtop_exporter.delivery.spool_database import Database
from otel_cbtop_exporter.delivery.spool_queries import (
    restore,
    rows_newest_first,
    rows_oldest_first,
)
from otel_cbtop_exporter.delivery.spool_rows import Row

__all__ = ["rebuild"]

_KEPT_ASIDE = 3


def rebuild(database: Database, path: Path, owed: Mapping[int, Row | None]) -> Path:
    """Set a damaged file aside and begin a new one with what can be read of it.

    Args:
        database: Closed.
        path: Its file.
        owed: Rows that have changed since, by their ids; None for those that are gone.

    Returns:
        Where the damaged file is: `<name>.damaged-<nanoseconds>`.

    Raises:
        OSError: The folder does not allow it.
        SpoolError: The new file cannot be made.
    """
    aside = _move_aside(path)

    def fill(connection: sqlite3.Connection) -> None:
        with database.transaction(connection), closing(_salvage(aside)) as rows:
            for row_id, stored in rows:
                row = owed.get(row_id, stored)
                if row is not None:
                    restore(connection, row_id, row)

    database.run(fill)
    return aside


def _move_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    path.rename(aside)
    wal = path.with_name(path.name + "-wal")
    if wal.exists():
        wal.rename(aside.with_name(aside.name + "-wal"))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    _remove_older(path.parent)
    return aside


def _remove_older(folder: Path) -> None:
    """Keep a failing disk from filling up with what it has damaged."""
    found = (p for p in folder.glob("*.damaged-*") if not p.name.endswith(("-wal", "-shm")))
    for one in sorted(found, key=lambda p: p.name.rpartition("-")[2])[:-_KEPT_ASIDE]:
        for suffix in ("-wal", "-shm", ""):
            one.with_name(one.name + suffix).unlink(missing_ok=True)


def _salvage(path: Path) -> Generator[tuple[int, Row], None, None]:
    """Read from the first row to the damage, and from the last back to it; no row twice."""
    last_id = -1
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            try:
                for row_id, row in rows_oldest_first(connection):
                    last_id = row_id
                    if _is_row(row):
                        yield row_id, row
            except sqlite3.Error:
                for row_id, row in rows_newest_first(connection, last_id):
                    if _is_row(row):
                        yield row_id, row
    except sqlite3.Error:
        return


def _is_row(row: Row) -> bool:
    types = (str, int, int, int, int, int, int, bytes)
    return all(isinstance(value, kind) for value, kind in zip(row, types, strict=True))

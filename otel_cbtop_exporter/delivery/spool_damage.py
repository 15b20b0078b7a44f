"""Recovery from a damaged spool file: it is set aside, and its readable rows are salvaged."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Mapping
from contextlib import closing, suppress
from pathlib import Path

from otel_cbtop_exporter.delivery import spool_queries as queries
from otel_cbtop_exporter.delivery.spool_database import Database, remove_files
from otel_cbtop_exporter.delivery.spool_rows import Row

__all__ = ["rebuild"]

_KEPT_ASIDE = 3
_ABOVE_ALL_IDS = 2**63 - 1


def rebuild(database: Database, path: Path, owed: Mapping[int, Row | None]) -> Path:
    """Set a damaged file aside and begin a new one with the rows that can still be read.

    Args:
        database: The database, closed.
        path: Its file.
        owed: By row id, changes that the file does not have yet; None for a row that is gone.

    Returns:
        Where the damaged file is: `<name>.damaged-<nanoseconds>`.

    Raises:
        OSError: The folder does not allow it.
        SpoolError: The new file cannot be made.
    """
    aside = _move_aside(path)

    def fill(connection: sqlite3.Connection) -> None:
        with closing(_salvage(aside)) as rows:
            for row_id, stored in rows:
                row = owed.get(row_id, stored)
                if row is not None:
                    queries.restore(connection, row_id, row._replace(created_ns=stored.created_ns))

    database.run(lambda connection: database.transact(connection, fill))
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
    """Remove older damaged files, so that a failing disk does not fill up with them."""
    found = (p for p in folder.glob("*.damaged-*") if not p.name.endswith(("-wal", "-shm")))
    for one in sorted(found, key=lambda p: p.name.rpartition("-")[2])[:-_KEPT_ASIDE]:
        remove_files(one)


def _salvage(path: Path) -> Generator[tuple[int, Row], None, None]:
    """Read every row that can be read, one at a time; no row twice."""
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for row_id in _ids(connection):
                with suppress(sqlite3.Error):
                    row = queries.row_by_id(connection, row_id)
                    # A damaged tree may not find a row that it has listed.
                    if row is not None and _is_row(row):
                        yield row_id, row
    except sqlite3.Error:
        return


def _ids(connection: sqlite3.Connection) -> Generator[int, None, None]:
    """Find rows from the first one up to the damage, then from the last one back to it."""
    # One query for each row: a cursor reads one row ahead, so where it meets the damage the good
    # row before it would be lost too. The ids are compared because a damaged tree may return a row
    # that was not asked for.
    low, high = -1, _ABOVE_ALL_IDS
    with suppress(sqlite3.Error):
        while (found := queries.next_id(connection, low)) is not None and found > low:
            yield found
            low = found
        if found is None:
            return
    while (found := queries.previous_id(connection, high)) is not None and low < found < high:
        yield found
        high = found


def _is_row(row: Row) -> bool:
    types = (str, int, int, int, int, int, int, bytes)
    return all(isinstance(value, kind) for value, kind in zip(row.columns, types, strict=True))

"""What is done with a spool file that is not a database any more: set aside, and read."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from otel_cbtop_exporter.delivery.spool_rows import Row

__all__ = ["move_aside", "salvage"]

_COLUMNS = "id, lane, events, bytes, created_ns, body"
_FORWARD = f"SELECT {_COLUMNS} FROM batches ORDER BY id"
_BACKWARD = f"SELECT {_COLUMNS} FROM batches WHERE id > ? ORDER BY id DESC"
_KEPT_ASIDE = 3


def move_aside(path: Path) -> Path:
    """Rename a damaged database with its WAL; only the newest few of a folder are kept.

    Args:
        path: The database.

    Returns:
        Its new path, `<name>.damaged-<nanoseconds>`.

    Raises:
        OSError: The folder does not allow it.
    """
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    path.rename(aside)
    wal = path.with_name(path.name + "-wal")
    if wal.exists():
        wal.rename(aside.with_name(aside.name + "-wal"))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    older = sorted(
        (p for p in path.parent.glob("*.damaged-*") if not p.name.endswith(("-wal", "-shm"))),
        key=lambda p: int(p.name.rpartition("-")[2]),
    )
    for one in older[:-_KEPT_ASIDE]:
        for suffix in ("-wal", "-shm", ""):
            one.with_name(one.name + suffix).unlink(missing_ok=True)
    return aside


def salvage(path: Path) -> Iterator[tuple[int, Row]]:
    """Read what can be read: from the first row to the damage, and from the last back to it.

    Args:
        path: The damaged database.

    Yields:
        Row ids and rows, in no order that matters, none twice.
    """
    last_id = -1
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            try:
                for row in _rows(connection, _FORWARD, ()):
                    last_id = row[0]
                    yield row
            except sqlite3.Error:
                yield from _rows(connection, _BACKWARD, (last_id,))
    except sqlite3.Error:
        return


def _rows(
    connection: sqlite3.Connection, query: str, parameters: tuple[int, ...]
) -> Iterator[tuple[int, Row]]:
    with closing(connection.execute(query, parameters)) as cursor:
        for row_id, *stored in cursor:
            row = Row(*stored)
            if isinstance(row.lane, str) and isinstance(row.body, bytes):
                yield row_id, row

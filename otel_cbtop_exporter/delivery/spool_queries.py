"""Every statement that reads or changes the rows of a spool's database."""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Generator, Iterable
from contextlib import closing
from typing import NamedTuple

from otel_cbtop_exporter.delivery.spool_rows import ROW_OVERHEAD_BYTES, Row
from otel_cbtop_exporter.tally import Tally

__all__ = [
    "Leaving",
    "count",
    "delete",
    "file_bytes",
    "has",
    "has_up_to",
    "insert",
    "is_empty",
    "lanes",
    "leaving",
    "newest_ns",
    "next_id",
    "oldest_ns",
    "previous_id",
    "replace",
    "restore",
    "row_by_id",
    "rows_of_lane",
    "rows_oldest_first",
]

# What a row takes. In memory it may be unpacked (an empty body): then its size before compression
# counts.
_STORED_BYTES = f"CASE length(body) WHEN 0 THEN bytes ELSE length(body) END + {ROW_OVERHEAD_BYTES}"


class Leaving(NamedTuple):
    """A row that has to leave the spool, and why."""

    row_id: int
    tally: Tally
    stored_bytes: int
    reason: str


def count(connection: sqlite3.Connection) -> tuple[Tally, int]:
    """Return how many records there are and how many bytes they take; reads no body."""
    query = f"""
        SELECT sum({_STORED_BYTES}), sum(events), sum(spans), sum(log_records), sum(data_points)
        FROM batches
    """  # noqa: S608  nothing in it comes from outside
    sums = connection.execute(query).fetchone()
    stored_bytes, *counts = (int(number or 0) for number in sums)
    return Tally(*counts), stored_bytes


def is_empty(connection: sqlite3.Connection, besides: Container[int]) -> bool:
    """Return whether there is no row other than those in `besides`."""
    with closing(connection.execute("SELECT id FROM batches")) as cursor:
        return all(row_id in besides for (row_id,) in cursor)


def oldest_ns(connection: sqlite3.Connection) -> int | None:
    """Return when the first row was appended."""
    row = connection.execute("SELECT created_ns FROM batches ORDER BY id LIMIT 1").fetchone()
    return None if row is None else int(row[0])


def has(connection: sqlite3.Connection, row_id: int) -> bool:
    """Return whether there is a row with that id."""
    query = "SELECT 1 FROM batches WHERE id = ?"
    return connection.execute(query, (row_id,)).fetchone() is not None


def newest_ns(connection: sqlite3.Connection) -> int | None:
    """Return the latest time at which a row was appended; it need not be the last row's."""
    (latest,) = connection.execute("SELECT max(created_ns) FROM batches").fetchone()
    return None if latest is None else int(latest)


def has_up_to(connection: sqlite3.Connection, created_ns: int) -> bool:
    """Return whether a row was appended at `created_ns` or earlier."""
    query = "SELECT 1 FROM batches WHERE created_ns <= ? LIMIT 1"
    return connection.execute(query, (created_ns,)).fetchone() is not None


def file_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of the database, free pages included."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages * page_bytes)


def lanes(connection: sqlite3.Connection) -> list[str]:
    """Return the lanes, the one with the oldest row first."""
    # Skips from lane to lane along the index, because DISTINCT would walk through all of it.
    query = """
        WITH RECURSIVE found (lane) AS (
            SELECT min(lane) FROM batches
            UNION ALL
            SELECT (SELECT min(lane) FROM batches WHERE batches.lane > found.lane)
            FROM found WHERE found.lane IS NOT NULL
        )
        SELECT lane FROM found WHERE lane IS NOT NULL
        ORDER BY (SELECT min(id) FROM batches WHERE batches.lane = found.lane)
    """
    return [lane for (lane,) in connection.execute(query).fetchall()]


def insert(connection: sqlite3.Connection, row: Row) -> int:
    """Add a row at the end; returns its id."""
    query = """
        INSERT INTO batches (
            lane, events, spans, log_records, data_points, bytes, created_ns, body
        ) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    """
    row_id = connection.execute(query, row.columns).lastrowid
    assert row_id is not None  # the INSERT has succeeded
    return row_id


def restore(connection: sqlite3.Connection, row_id: int, row: Row) -> None:
    """Add a row with the id that it had in another file."""
    query = """
        INSERT INTO batches (
            id, lane, events, spans, log_records, data_points, bytes, created_ns, body
        ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    """
    connection.execute(query, (row_id, *row.columns))


def replace(connection: sqlite3.Connection, row_id: int, row: Row) -> None:
    """Replace the records of a row; its age stays."""
    query = """
        UPDATE batches SET (events, spans, log_records, data_points, bytes, body)
        = (?, ?, ?, ?, ?, ?) WHERE id = ?
    """
    counts = (row.events, row.spans, row.log_records, row.data_points)
    connection.execute(query, (*counts, row.body_bytes, row.body, row_id))


def delete(connection: sqlite3.Connection, row_ids: Iterable[int]) -> None:
    """Remove rows; ids that are gone already are ignored."""
    connection.executemany("DELETE FROM batches WHERE id = ?", ((row_id,) for row_id in row_ids))


def leaving(
    connection: sqlite3.Connection,
    excess_bytes: int,
    created_before_ns: int,
    stay: Container[int],
) -> list[Leaving]:
    """Choose the oldest rows that are too many or too old.

    Args:
        connection: A connection to the database.
        excess_bytes: How many bytes have to leave.
        created_before_ns: Rows at the head that were appended before this time have to leave.
        stay: Ids of rows that stay in any case.
    """
    chosen: list[Leaving] = []
    if excess_bytes <= 0 and created_before_ns <= 0:
        return chosen
    query = f"""
        SELECT id, created_ns, {_STORED_BYTES}, events, spans, log_records, data_points
        FROM batches ORDER BY id
    """  # noqa: S608  as above
    with closing(connection.execute(query)) as cursor:
        for row_id, created_ns, stored_bytes, *counts in cursor:
            if row_id in stay:
                continue
            if created_ns < created_before_ns:
                chosen.append(Leaving(row_id, Tally(*counts), stored_bytes, "expired"))
            elif excess_bytes > 0:
                chosen.append(Leaving(row_id, Tally(*counts), stored_bytes, "spool_full"))
            else:
                break
            excess_bytes -= stored_bytes
    return chosen


def rows_of_lane(
    connection: sqlite3.Connection, lane: str
) -> Generator[tuple[int, Row], None, None]:
    """Walk through a lane, oldest first; close the iterator if you leave it early."""
    query = """
        SELECT id, lane, events, spans, log_records, data_points, bytes, created_ns, body
        FROM batches WHERE lane = ? ORDER BY id
    """
    return _rows(connection.execute(query, (lane,)))


def rows_oldest_first(connection: sqlite3.Connection) -> Generator[tuple[int, Row], None, None]:
    """Walk through all rows; close the iterator if you leave it early."""
    query = """
        SELECT id, lane, events, spans, log_records, data_points, bytes, created_ns, body
        FROM batches ORDER BY id
    """
    return _rows(connection.execute(query))


def next_id(connection: sqlite3.Connection, after: int) -> int | None:
    """Return the lowest row id above `after`; None if there is none."""
    query = "SELECT id FROM batches WHERE id > ? ORDER BY id LIMIT 1"
    row = connection.execute(query, (after,)).fetchone()
    return None if row is None else int(row[0])


def previous_id(connection: sqlite3.Connection, before: int) -> int | None:
    """Return the highest row id below `before`; None if there is none."""
    query = "SELECT id FROM batches WHERE id < ? ORDER BY id DESC LIMIT 1"
    row = connection.execute(query, (before,)).fetchone()
    return None if row is None else int(row[0])


def row_by_id(connection: sqlite3.Connection, row_id: int) -> Row | None:
    """Return a row; None if there is none with that id."""
    query = """
        SELECT lane, events, spans, log_records, data_points, bytes, created_ns, body
        FROM batches WHERE id = ?
    """
    row = connection.execute(query, (row_id,)).fetchone()
    return None if row is None else Row(*row)


def _rows(cursor: sqlite3.Cursor) -> Generator[tuple[int, Row], None, None]:
    with closing(cursor):
        for row_id, *columns in cursor:
            yield row_id, Row(*columns)

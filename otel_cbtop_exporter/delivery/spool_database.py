"""One SQLite database of a spool: opened when it is needed, under the process's spool lock.

Belongs here: the connection, its pragmas, transactions, forks, and what SQLite's errors mean. Not
here: what the rows mean (`spool.py`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

from otel_cbtop_exporter.delivery.spool_checks import make_private_file
from otel_cbtop_exporter.delivery.spool_lock import watch_forks
from otel_cbtop_exporter.delivery.spool_rows import SpoolError, migrate

__all__ = ["DamagedError", "Database", "remove_files"]

_T = TypeVar("_T")

_PRAGMAS = (
    # On by default in Debian's SQLite: deleting 5,000 rows takes 1.5 s instead of 0.05.
    "PRAGMA secure_delete = OFF",
    "PRAGMA journal_mode = WAL",
    "PRAGMA journal_size_limit = 4194304",
)
# Recognized by their text: Python has SQLite's error codes only since 3.11.
_SIGNS_OF_DAMAGE = ("malformed", "not a database", "unsupported file format", "no such", "decode")

# A connection in memory cannot be closed before a fork, and the child must not touch it: this
# reference keeps it from being freed.
_abandoned: list[sqlite3.Connection] = []


class DamagedError(SpoolError):
    """The file is no longer a database, or only parts of it are."""


class Database:
    """A connection that is opened when it is needed; every call needs the spool lock.

    Args:
        path: A file, made (and private) if it is missing; None for memory.
        synchronous: `normal` or `full`.
        on_open: Called with every new connection.
    """

    def __init__(
        self,
        path: Path | None,
        synchronous: Literal["normal", "full"],
        on_open: Callable[[sqlite3.Connection], None],
    ) -> None:
        self.path = path
        self._synchronous = synchronous
        self._on_open = on_open
        self._connection: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        self._disowned = False
        watch_forks(self)

    def run(self, operation: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run an operation on the connection, which is opened if necessary.

        Raises:
            DamagedError: The file is damaged; the connection is closed.
            SpoolError: Any other error of SQLite or the disk, or the file is the parent's.
        """
        if self._disowned:
            raise SpoolError("the file belongs to the process that this one was forked from")
        try:
            return operation(self._connection or self._open())
        except sqlite3.Error as error:
            if self.path is not None and _is_damage(error):
                self.close()
                raise DamagedError(str(error)) from error
            self._close_unless_readable()
            raise SpoolError(str(error)) from error
        except (OSError, UnicodeEncodeError) as error:  # the latter for a lane that is not Unicode
            raise SpoolError(str(error)) from error

    def transact(
        self, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], _T]
    ) -> _T:
        """Run `work` in a transaction: all of it is committed, or nothing."""
        if connection.in_transaction:
            # A signal handler has interrupted this thread in a transaction: commit both together.
            return work(connection)
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:  # also what a signal handler raises, at any point
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result

    def was_removed(self) -> bool:
        """Whether somebody removed the open file, so that its content ends with this process."""
        if self._connection is None or self.path is None or self._file is None:
            return False
        try:
            return not os.path.samestat(self._file, self.path.stat())
        except OSError:
            return True

    def close(self) -> None:
        """Close the connection; the next `run` opens it again."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with suppress(sqlite3.Error):
                connection.close()

    def delete(self) -> None:
        """Close the connection and delete the database, whatever it holds.

        Raises:
            OSError: The folder does not allow it.
        """
        self.close()
        if self.path is not None:
            remove_files(self.path)

    def before_fork(self) -> None:
        """Close the file, so that the child inherits no open one."""
        if self.path is not None:
            self.close()

    def after_fork_in_child(self) -> None:
        """Leave a file to the parent; in memory, begin with an empty database."""
        if self._connection is not None:
            _abandoned.append(self._connection)
            self._connection = None
        self._disowned = self.path is not None

    def _open(self) -> sqlite3.Connection:
        if self.path is not None:
            make_private_file(self.path)
            self._file = self.path.stat()
        # Threads take turns under our lock, so sqlite3's own check would only be in the way.
        connection = sqlite3.connect(
            self.path or ":memory:", timeout=1, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            if self._synchronous == "full":  # macOS keeps in its cache what is synced otherwise
                connection.execute("PRAGMA fullfsync = 1")
            migrate(connection)
            self._on_open(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _close_unless_readable(self) -> None:
        """Keep a connection that can still read: a full disk may not let us open another."""
        if self._connection is not None and self.path is not None:
            try:
                self._connection.execute("SELECT id FROM batches LIMIT 1").fetchone()
            except sqlite3.Error:
                self.close()


def remove_files(path: Path) -> None:
    """Remove a database and the files that SQLite keeps beside it; nobody may have it open.

    Raises:
        OSError: The folder does not allow it.
    """
    # The database last: a WAL that outlives it would be replayed into a later one.
    for suffix in ("-wal", "-shm", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _is_damage(error: sqlite3.Error) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS_OF_DAMAGE)

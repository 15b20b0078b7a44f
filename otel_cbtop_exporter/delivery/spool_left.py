"""What waits in a spool's folder, for people to inspect and to take out by hand.

Looking changes nothing and blocks no process. While somebody takes out what a dead process left,
its owner file is held, so that no process empties the spool file meanwhile.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec

from otel_cbtop_exporter.delivery import spool_queries as queries
from otel_cbtop_exporter.delivery.spool_database import remove_files
from otel_cbtop_exporter.delivery.spool_owner import FOLDER_NAME, Owner, is_alive, owner_names
from otel_cbtop_exporter.delivery.spool_rows import SpoolError, unpack
from otel_cbtop_exporter.sinks.base import Records

__all__ = ["HeldFile", "SpoolFile", "hold", "look"]


# How processes name their files: time, process id, random part. Other files are not ours.
_NAME = re.compile(r"\d+-\d+-[0-9a-f]+")


class SpoolFile(msgspec.Struct, frozen=True):
    """One process's file for one destination.

    Attributes:
        folder: The destination's folder.
        name: The file's name without its suffix: when it was made, the process id, a random part.
        alive: Whether that process, or one that took the file over, holds it now.
        events: How many events wait, for a live process at this moment; None if not known.
        spool_bytes: How many bytes they take, compressed.
        oldest_ns: When the oldest was accepted, nanoseconds since the Unix epoch.
        problem: Why it cannot be read; "" if it can.
    """

    folder: Path
    name: str
    alive: bool
    events: int | None = None
    spool_bytes: int | None = None
    oldest_ns: int | None = None
    problem: str = ""


def look(root: Path) -> list[SpoolFile]:
    """Return the files under a spool's folder, by destination, oldest first.

    Raises:
        OSError: The folder cannot be read.
    """
    folders = sorted(p for p in root.iterdir() if FOLDER_NAME.fullmatch(p.name) and p.is_dir())
    folders.insert(0, root)
    return [file for folder in folders for file in _look_into(folder)]


def _look_into(folder: Path) -> list[SpoolFile]:
    try:
        names = [
            name
            for name in owner_names(folder)
            if _NAME.fullmatch(name) and _path(folder, name).exists()
        ]
    except OSError as error:
        return [SpoolFile(folder, "", alive=False, problem=str(error))]
    return [_look_at(folder, name) for name in names]


class HeldFile:
    """The file of a dead process, held so that no process takes it over; made by `hold` only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.removed = False
        """Whether `remove` was called."""

    def batches(self) -> Iterator[Records]:
        """Yield what waits, oldest first, in batches of one lane each; nothing is removed.

        Raises:
            SpoolError: A part cannot be read; what comes after it is not yielded.
        """
        try:
            with closing(_open(self._path)) as connection:
                for _, row in queries.rows_oldest_first(connection):
                    records = unpack(row.body)
                    if not records:
                        raise SpoolError("a row of it is damaged")
                    yield records
        except sqlite3.Error as error:
            raise SpoolError(str(error)) from error

    def remove(self) -> None:
        """Remove the file and everything in it.

        Raises:
            OSError: The folder does not allow it.
        """
        remove_files(self._path)
        self.removed = True


@contextmanager
def hold(folder: Path, name: str) -> Iterator[HeldFile]:
    """Hold the file of a dead process, so that no process takes it over.

    Raises:
        SpoolError: A process holds it.
        OSError: It is not ours, or the folder or the system does not allow it.
    """
    owner = Owner.try_take(folder, name, publishes=False)
    if owner is None:
        raise SpoolError("a process holds it")
    held = HeldFile(_path(folder, name))
    try:
        yield held
    finally:
        owner.release(remove=held.removed)


def _look_at(folder: Path, name: str) -> SpoolFile:
    alive = is_alive(folder, name)
    try:
        with closing(_open(_path(folder, name))) as connection:
            waiting, spool_bytes = queries.count(connection)
            oldest_ns = queries.oldest_ns(connection)
        return SpoolFile(
            folder,
            name,
            alive=alive,
            events=waiting.events,
            spool_bytes=spool_bytes,
            oldest_ns=oldest_ns,
        )
    except sqlite3.Error as error:
        # A live process may have just removed it, because it is empty.
        return SpoolFile(folder, name, alive=alive, problem="" if alive else str(error))


def _open(path: Path) -> sqlite3.Connection:
    # If there is no WAL to read, tell SQLite that nobody writes, or it would make an empty one.
    immutable = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro{immutable}", uri=True)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.db"

"""What waits in a spool's folder, for people to look at, and to take out by hand.

Looking changes nothing, and keeps nobody from his work. To take out what a dead process left, its
owner file is held, so that nobody empties the file meanwhile.
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


# What a process calls its file: when, its id, and something random. Others are not ours.
_NAME = re.compile(r"\d+-\d+-[0-9a-f]+")


class SpoolFile(msgspec.Struct, frozen=True):
    """One process's file for one destination.

    Attributes:
        folder: Of the destination.
        name: Without its ending: when it was made, the process id, and a random part.
        alive: Whether that process, or one that took it over, holds it now.
        events: That wait, of a live process at this moment; None where that is not known.
        spool_bytes: What they take, compressed.
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
    """Return the files under a spool's folder, by destination, the oldest first.

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
    """The file of a dead process while nobody else may have it; made by `hold` only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.removed = False
        """Whether `remove` was called."""

    def batches(self) -> Iterator[Records]:
        """Yield what waits, oldest first, each batch of one lane; it stays there.

        Raises:
            SpoolError: A part of it cannot be read; what is behind that was not yielded.
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
        """Remove the file, with whatever is in it.

        Raises:
            OSError: The folder does not allow it.
        """
        remove_files(self._path)
        self.removed = True


@contextmanager
def hold(folder: Path, name: str) -> Iterator[HeldFile]:
    """Keep every process from taking a dead one's file over.

    Raises:
        SpoolError: A process holds it.
        OSError: It is not ours.
    """
    owner = Owner.try_take(folder, name)
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
        # A live process may have removed it just now, because it is empty.
        return SpoolFile(folder, name, alive=alive, problem="" if alive else str(error))


def _open(path: Path) -> sqlite3.Connection:
    # Without a log to read, SQLite is told that nobody writes, or it would make an empty one.
    immutable = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro{immutable}", uri=True)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.db"

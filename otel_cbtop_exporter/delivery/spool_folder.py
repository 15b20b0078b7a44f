"""The spool of one destination on disk: this process's file, adopted ones, and memory.

Belongs here: what happens while the disk cannot be used, and in which order spools are emptied.
Not here: which file is whose (`spool_files.py`), and what is in one (`spool.py`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from otel_cbtop_exporter.config import SpoolConfig
from otel_cbtop_exporter.delivery.retry import Clock
from otel_cbtop_exporter.delivery.spool import (
    DEFAULT_MEMORY_BYTES,
    Spool,
    SpoolError,
    SpoolStats,
)
from otel_cbtop_exporter.delivery.spool_claim import sum_of
from otel_cbtop_exporter.delivery.spool_files import SpoolFiles
from otel_cbtop_exporter.delivery.spool_lock import spool_lock, watch_forks
from otel_cbtop_exporter.delivery.spool_owner import FOLDER_NAME, is_alive
from otel_cbtop_exporter.delivery.spool_reports import Reports, reporting
from otel_cbtop_exporter.delivery.spool_rows import Row, pack
from otel_cbtop_exporter.sinks.base import Record

__all__ = ["DEFAULT_FOLDER_BYTES", "SpoolFolder", "destination_folder", "make_spool"]

DEFAULT_FOLDER_BYTES = 1024 * 1024 * 1024

# How often to look at the other processes' use of the folder, and to publish ours.
_SHARE_SECONDS = 2.0
# How often to try a disk again that has failed.
_ASK_DISK_SECONDS = 1.0
# How much one append moves back to the disk at most, so that no append takes long.
_HAND_OVER_BYTES = 8 * 1024 * 1024


def destination_folder(path: Path, sink_name: str, destination: str) -> Path:
    """Return the folder of one destination inside the spool's folder."""
    digest = hashlib.sha256(destination.encode()).hexdigest()[:16]
    return path / f"{sink_name}-{digest}"


def make_spool(
    config: SpoolConfig,
    sink_name: str,
    destination: str,
    *,
    reports: Reports,
    clock: Clock,
) -> Spool | SpoolFolder:
    """Make the spool that a configuration asks for, without opening any database yet.

    Args:
        config: Where records wait, and how many.
        sink_name: The sink's name.
        destination: The sink's destination.
        reports: Where to report what happens.
        clock: Time.
    """
    if config.path is None:
        return Spool(
            max_bytes=config.max_bytes or DEFAULT_MEMORY_BYTES,
            max_age_ms=config.max_age_ms,
            reports=reports,
            time_ns=clock.time_ns,
        )
    return SpoolFolder(
        Path(config.path),
        sink_name,
        destination,
        max_bytes=config.max_bytes or DEFAULT_FOLDER_BYTES,
        max_age_ms=config.max_age_ms,
        synchronous=config.synchronous,
        reports=reports,
        monotonic=clock.monotonic,
        time_ns=clock.time_ns,
    )


class SpoolFolder:
    """Records waiting for one destination, in files of a folder that processes share.

    Promises, each with a test of that name in tests/delivery/test_spool_*.py: what a dead
    process left is claimed by one live one, in order, and its files are removed; nothing of
    another destination is ever touched; the files of a folder together stay within
    `max_bytes`; while the disk says no, records are in memory, and they go back to the disk,
    in order, when it takes them again; a place that is not private is not used.

    Every process has a file of its own and evicts only the oldest rows of the files it holds. It
    publishes what it holds in its owner files and looks at those of others every two seconds, so
    the folder may exceed its limit by what is appended in that time. However full the folder is,
    each process may use an equal share of it, so no other process or dead destination starves us.

    Thread-safe. After a fork the child begins with a file of its own.

    Args:
        path: The spool's folder; each destination has a folder in it.
        sink_name: The sink's name.
        destination: The sink's destination.
        max_bytes: Limit for the whole of `path`, compressed.
        max_age_ms: See `Spool`.
        synchronous: See `Spool`.
        reports: Where to report what happens.
        monotonic: Seconds that never go back.
        time_ns: Nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        path: Path,
        sink_name: str,
        destination: str,
        *,
        max_bytes: int = DEFAULT_FOLDER_BYTES,
        max_age_ms: int = 0,
        synchronous: Literal["normal", "full"] = "normal",
        reports: Reports | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._root = path
        self.folder = destination_folder(self._root, sink_name, destination)
        self._monotonic = monotonic
        self._time_ns = time_ns
        self._reports = reports or Reports()

        def spool_at(file: Path | None, limit: int) -> Spool:
            return Spool(
                file,
                max_bytes=limit,
                max_age_ms=max_age_ms,
                synchronous=synchronous,
                reports=self._reports,
                time_ns=time_ns,
            )

        self._memory = spool_at(None, min(max_bytes, DEFAULT_MEMORY_BYTES))
        self._files = SpoolFiles(self.folder, destination, max_bytes, spool_at, self._reports)
        self._has_adopted = False
        self._begin()
        watch_forks(self)

    def append(self, records: Sequence[Record]) -> None:
        """Take records; when this returns, they are committed, to disk if possible.

        Args:
            records: Of any lanes; their order within a lane is kept.

        Raises:
            SpoolError: Neither disk nor memory can take them.
        """
        self._append_rows(pack(records, self._time_ns()))  # pack without the lock

    @reporting
    def spools(self) -> Sequence[Spool]:
        """Return the spools that have records, in the order to empty them.

        Those of dead processes come first. A spool that cannot be read now is included: reading it
        raises, and the caller tries again later.
        """
        self._share()
        self._files.drop_empty()
        places = self._files.spools()
        # While the disk is not in use, memory holds what is newest, and comes last. Afterwards it
        # holds only what was claimed when the rest moved back, and comes before our own file.
        places.insert(max(0, len(places) - 1) if self._on_disk else len(places), self._memory)
        return [spool for spool in places if self._has_records(spool)]

    def adopt(self) -> int:
        """Take over what dead processes left for this destination.

        Cheap if there is nothing to do: one look into the folder and one `flock` for each owner.
        Call it once at the start, and then from time to time.

        Returns:
            How many spools were taken over: a few at a time, oldest first.
        """
        adopted = self._adopt()
        if adopted is None:
            return 0
        if not self._has_adopted:
            self._has_adopted = True
            # Without the lock: there may be many files, and exports and forks wait for the lock.
            if folders := ", ".join(map(str, self.foreign())):
                self._tell(f"events of other destinations wait in {folders}")
        return adopted

    @reporting
    def _adopt(self) -> int | None:
        try:
            return self._files.adopt()
        except OSError as error:
            self._reports.note("spool_place", f"spool folder {self.folder}: {error}")
            return None

    @reporting
    def _tell(self, what: str) -> None:
        self._reports.note("foreign", f"{what} (see `otel-cbtop spool`)")

    def foreign(self) -> list[Path]:
        """Return the folders of other destinations that hold files of dead processes."""
        try:
            files = [f for f in self._root.glob("*/*.db") if FOLDER_NAME.fullmatch(f.parent.name)]
            return sorted({f.parent for f in files if not _is_alive(f)} - {self.folder})
        except OSError:
            return []

    @reporting
    def stats(self) -> SpoolStats:
        """Return what is waiting in all spools that this process holds."""
        return sum_of([spool.stats() for spool in [*self._files.spools(), self._memory]])

    @reporting
    def close(self) -> SpoolStats:
        """Leave what is on disk to the next process; drop and count what only memory holds.

        Returns:
            What is left on disk.
        """
        self._memory.forget_claims()  # nobody will settle them
        if self._memory.stats().events_spooled:
            self._back_to_disk(self._memory.max_bytes)
        self._memory.close()
        left = sum_of(self._files.give_up())
        self._begin()
        return left

    def before_fork(self) -> None:
        """Do nothing: the spools close themselves, and the parent keeps its locks."""

    def after_fork_in_child(self) -> None:
        """Start afresh; files and locks still belong to the parent."""
        self._reports.forget()
        self._files.leave_to_parent()
        self._begin()

    @reporting
    def _append_rows(self, rows: Sequence[Row]) -> None:
        if not self._append_to_disk(rows):
            self._memory.append_rows(rows)

    def _begin(self) -> None:
        self._on_disk = True
        self._ask_disk_at = 0.0
        self._share_at = 0.0

    def _append_to_disk(self, rows: Sequence[Row]) -> bool:
        if not self._on_disk and (
            self._monotonic() < self._ask_disk_at or not self._back_to_disk(_HAND_OVER_BYTES)
        ):
            return False
        try:
            self._files.own()
            self._share()  # it may replace our file, if somebody removed it
            self._files.own().append_rows(rows)
        except (OSError, SpoolError) as error:
            self._fall_back(error)
            return False
        return True

    def _back_to_disk(self, max_bytes: int) -> bool:
        """Move about `max_bytes` from memory to disk; True if nothing more can be moved."""
        try:
            if not self._memory.hand_over(self._files.own(), max_bytes):
                return False
        except (OSError, SpoolError) as error:
            self._fall_back(error)
            return False
        if not self._on_disk:
            self._reports.note("spool_on_disk", f"spool folder {self.folder} is in use again")
        self._on_disk = True
        return True

    def _fall_back(self, error: Exception) -> None:
        self._on_disk = False
        self._ask_disk_at = self._monotonic() + _ASK_DISK_SECONDS
        self._reports.note(
            "spool_in_memory",
            f"spool folder {self.folder} cannot be used, events wait in memory: {error}",
        )

    def _share(self) -> None:
        if self._monotonic() < self._share_at:
            return
        self._share_at = self._monotonic() + _SHARE_SECONDS
        try:
            self._files.share()
        except (OSError, SpoolError) as error:
            self._reports.note("spool_share", f"spool folder {self.folder}: {error}")

    def _has_records(self, spool: Spool) -> bool:
        if not spool.stats().events_spooled:
            return False
        try:
            return bool(spool.lanes())
        except SpoolError as error:
            self._reports.note("spool_read", f"a spool file cannot be read: {error}")
            return True


def _is_alive(file: Path) -> bool:
    with spool_lock():  # or a child forked now would inherit the open owner file and its lock
        return is_alive(file.parent, file.stem)

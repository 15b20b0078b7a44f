"""The spool of one destination on disk: this process's file, those of the dead, and memory.

Belongs here: which file is whose, taking over, the limit over the folder, and what happens
while the disk says no. Not here: what is in a file (`spool.py`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from otel_cbtop_exporter.config import SpoolConfig
from otel_cbtop_exporter.delivery.process_lock import process_lock, watch_forks
from otel_cbtop_exporter.delivery.spool import DEFAULT_MEMORY_BYTES, Spool, SpoolError, SpoolStats
from otel_cbtop_exporter.delivery.spool_checks import make_private_folder, network_file_system
from otel_cbtop_exporter.delivery.spool_owner import Owner, owner_names, published_bytes
from otel_cbtop_exporter.delivery.spool_rows import pack
from otel_cbtop_exporter.sinks.base import Record

__all__ = ["DEFAULT_FOLDER_BYTES", "SpoolFolder", "destination_folder", "make_spool"]

DEFAULT_FOLDER_BYTES = 1024 * 1024 * 1024

# How often the other processes' use of the folder is looked at, and ours is told to them.
_LOOK_SECONDS = 2.0
# How often a disk that said no is asked again.
_RETRY_DISK_SECONDS = 1.0
# Moved back to the disk with one append, so that no append takes long.
_HAND_OVER_BYTES = 8 * 1024 * 1024
# Taken over at one time; the others wait for the next call of `adopt`.
_ADOPTED = 8


class _Adopted(msgspec.Struct):
    owner: Owner
    spool: Spool


def destination_folder(path: Path, sink_name: str, destination: str) -> Path:
    """Return the folder of one destination inside of the spool's folder."""
    digest = hashlib.sha256(destination.encode()).hexdigest()[:16]
    return path / f"{sink_name}-{digest}"


def make_spool(
    config: SpoolConfig,
    sink_name: str,
    destination: str,
    *,
    on_dropped: Callable[[str, int], None],
    on_notice: Callable[[str, str], None],
) -> Spool | SpoolFolder:
    """Make the spool that a configuration asks for; touches neither disk nor memory yet.

    Args:
        config: Where, and how much.
        sink_name: Of the sink.
        destination: Of the sink.
        on_dropped: See `Spool`.
        on_notice: See `Spool`.
    """
    if config.path is None:
        return Spool(
            max_bytes=config.max_bytes or DEFAULT_MEMORY_BYTES,
            max_age_ms=config.max_age_ms,
            on_dropped=on_dropped,
            on_notice=on_notice,
        )
    return SpoolFolder(
        Path(config.path),
        sink_name,
        destination,
        max_bytes=config.max_bytes or DEFAULT_FOLDER_BYTES,
        max_age_ms=config.max_age_ms,
        synchronous=config.synchronous,
        on_dropped=on_dropped,
        on_notice=on_notice,
    )


class SpoolFolder:
    """Records waiting for one destination, in files of a folder that processes share.

    Promises, each with a test of that name in tests/delivery/test_spool_folder*.py: what a dead
    process left is claimed by one live one, in order, and its files are removed; nothing of
    another destination is ever touched; the files of a folder together stay within
    `max_bytes`; while the disk says no, records are in memory, and they go back to the disk,
    in order, when it takes them again; a place that is not private is not used.

    Every process has one file and evicts its own oldest rows only. Each tells the others in its
    owner file what it holds, and looks at theirs every two seconds, so that the folder may be
    over the limit by what is appended in that time. However full the folder is, an equal share
    of it is always ours, so that neither a neighbour nor a dead destination starves us.

    Safe to share between threads. After a fork the child begins with a file of its own.

    Args:
        path: The spool's folder; each destination has a folder in it.
        sink_name: Of the sink.
        destination: Of the sink; only a hash of it is written.
        max_bytes: Over the whole of `path`, compressed.
        max_age_ms: See `Spool`.
        synchronous: See `Spool`.
        on_dropped: See `Spool`.
        on_notice: See `Spool`.
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
        on_dropped: Callable[[str, int], None] = lambda reason, events: None,
        on_notice: Callable[[str, str], None] = lambda cause, message: None,
        monotonic: Callable[[], float] = time.monotonic,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        # Absolute now: the application may change its working directory.
        self._root = path.expanduser().absolute()
        self.folder = destination_folder(self._root, sink_name, destination)
        self._max_bytes = max_bytes
        self._max_age_ms = max_age_ms
        self._synchronous = synchronous
        self._on_dropped = on_dropped
        self._on_notice = on_notice
        self._monotonic = monotonic
        self._time_ns = time_ns
        self._held: list[Callable[[], None]] = []
        self._memory = Spool(
            max_bytes=min(max_bytes, DEFAULT_MEMORY_BYTES),
            max_age_ms=max_age_ms,
            on_dropped=self._hold_dropped,
            on_notice=self._hold_notice,
        )
        self._reset()
        watch_forks(self)

    def append(self, records: Sequence[Record], now_ns: int) -> None:
        """Take records; when this returns, they are committed, to disk if it takes them.

        Args:
            records: Of any lanes; their order within a lane is kept.
            now_ns: Nanoseconds since the Unix epoch.

        Raises:
            SpoolError: Neither disk nor memory can take them.
        """
        rows = pack(records, now_ns)
        if not rows:
            return
        try:
            with process_lock():
                if self._disk_takes(now_ns):
                    try:
                        self._open_own().append_rows(rows, now_ns)
                    except (OSError, SpoolError) as error:
                        self._fall_back(error)
                    else:
                        return
                self._memory.append_rows(rows, now_ns)
        finally:
            self._tell()

    def spools(self) -> Sequence[Spool]:
        """Return the spools that have records, in the order to empty them.

        Those of dead processes come first. A spool that cannot be read now is left out.
        """
        with process_lock():
            self._look_around(self._time_ns())
            places = [adopted.spool for adopted in self._adopted]
            if self._own is not None:
                places.append(self._own)
            # What is in memory came after what is on disk, until the disk is in use again.
            places.insert(len(self._adopted) if self._on_disk else len(places), self._memory)
            ready = [spool for spool in places if self._has_records(spool)]
        self._tell()
        return ready

    def adopt(self) -> int:
        """Take over what dead processes left for this destination.

        Cheap where there is nothing to do: one look into the folder and one `flock` for each
        owner. Call it once at the start, and from time to time.

        Returns:
            How many spools were taken over; a few at a time, the oldest first.
        """
        adopted = 0
        with process_lock():
            try:
                if self.folder.exists():
                    self._check_place()
                    adopted = sum(self._adopt(name) for name in owner_names(self.folder))
            except OSError as error:
                self._hold_notice("spool_place", f"spool folder {self.folder}: {error}")
        self._tell()
        return adopted

    def foreign(self) -> list[Path]:
        """Return the folders of other destinations that hold spool files; nobody empties them."""
        try:
            return sorted({file.parent for file in self._root.glob("*/*.db")} - {self.folder})
        except OSError:
            return []

    def stats(self) -> SpoolStats:
        """Return what is waiting in all spools that this process has."""
        with process_lock():
            parts = [adopted.spool.stats() for adopted in self._adopted]
            parts += [spool.stats() for spool in (self._own, self._memory) if spool is not None]
        oldest = [part.oldest_ns for part in parts if part.oldest_ns is not None]
        return SpoolStats(
            sum(part.events_spooled for part in parts),
            sum(part.spool_bytes for part in parts),
            min(oldest, default=None),
        )

    def close(self) -> None:
        """Leave what is on disk to the next process; what only memory holds is dropped, counted."""
        with process_lock():
            if self._memory.stats().events_spooled:
                self._back_to_disk(self._memory.max_bytes, self._time_ns())
            self._memory.close()
            for adopted in self._adopted:
                self._give_up(adopted.owner, adopted.spool)
            if self._own is not None and self._owner is not None:
                self._give_up(self._owner, self._own)
            self._reset()
        self._tell()

    def before_fork(self) -> None:
        """Nothing: the spools close themselves, and the locks stay the parent's."""

    def after_fork_in_child(self) -> None:
        """Begin anew; the parent's files and locks stay its own."""
        for owner in [adopted.owner for adopted in self._adopted] + [self._owner]:
            if owner is not None:
                owner.close_in_child()
        self._held.clear()
        self._reset()

    def _reset(self) -> None:
        self._owner: Owner | None = None
        self._own: Spool | None = None
        self._adopted: list[_Adopted] = []
        self._on_disk = True
        self._ask_disk_at = 0.0
        self._look_at = 0.0
        self._budget = self._max_bytes

    def _disk_takes(self, now_ns: int) -> bool:
        """Whether to append on disk; where it said no, ask it again now and then."""
        if self._on_disk:
            self._look_around(now_ns)
            return True
        return self._monotonic() >= self._ask_disk_at and self._back_to_disk(
            _HAND_OVER_BYTES, now_ns
        )

    def _back_to_disk(self, max_bytes: int, now_ns: int) -> bool:
        try:
            if not self._memory.hand_over(self._open_own(), max_bytes, now_ns):
                return False
        except (OSError, SpoolError) as error:
            self._fall_back(error)
            return False
        if not self._on_disk:
            self._hold_notice("spool_on_disk", f"spool folder {self.folder} is in use again")
        self._on_disk = True
        return True

    def _fall_back(self, error: Exception) -> None:
        self._on_disk = False
        self._ask_disk_at = self._monotonic() + _RETRY_DISK_SECONDS
        self._hold_notice(
            "spool_in_memory",
            f"spool folder {self.folder} cannot be used, events wait in memory: {error}",
        )

    def _open_own(self) -> Spool:
        if self._own is None:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_place()
            self._owner = Owner.take_new(self.folder)
            self._own = self._file(self._owner.name)
        return self._own

    def _check_place(self) -> None:
        make_private_folder(self._root)
        make_private_folder(self.folder)
        network = network_file_system(self.folder)
        if network is not None:
            raise OSError(f"it is on a network file system ({network}), where SQLite loses data")

    def _file(self, name: str) -> Spool:
        return Spool(
            self.folder / f"{name}.db",
            max_bytes=self._budget,
            max_age_ms=self._max_age_ms,
            synchronous=self._synchronous,
            on_dropped=self._hold_dropped,
            on_notice=self._hold_notice,
        )

    def _adopt(self, name: str) -> bool:
        ours = {adopted.owner.name for adopted in self._adopted}
        if self._owner is not None:
            ours.add(self._owner.name)
        if name in ours or len(self._adopted) >= _ADOPTED:
            return False
        owner = Owner.take_dead(self.folder, name)
        if owner is None:
            return False
        spool = self._file(name)
        try:
            waiting = spool.path is not None and spool.path.exists() and bool(spool.lanes())
        except SpoolError as error:
            self._hold_notice("spool_adopt", f"spool file {name}.db is left alone: {error}")
            spool.close()
            owner.release(remove=False)
            return False
        if not waiting:
            self._give_up(owner, spool)
            return False
        self._adopted.append(_Adopted(owner, spool))
        return True

    def _has_records(self, spool: Spool) -> bool:
        if not spool.stats().events_spooled:
            for adopted in [one for one in self._adopted if one.spool is spool]:
                self._give_up(adopted.owner, spool)
                self._adopted.remove(adopted)
            return False
        try:
            return bool(spool.lanes())
        except SpoolError as error:
            self._hold_notice("spool_read", f"a spool file cannot be read: {error}")
            return False

    def _give_up(self, owner: Owner, spool: Spool) -> None:
        """Close a file of ours; one with nothing in it is removed with its owner file."""
        empty = not spool.stats().events_spooled
        try:
            if empty:
                spool.delete()
            else:
                spool.close()
        except OSError as error:
            empty = False
            self._hold_notice("spool_remove", f"an empty spool file cannot be removed: {error}")
        owner.release(remove=empty)

    def _look_around(self, now_ns: int) -> None:
        """Tell the others what we hold, see what they hold, and evict what is too much of ours."""
        if self._own is None or self._owner is None or self._monotonic() < self._look_at:
            return
        self._look_at = self._monotonic() + _LOOK_SECONDS
        self._owner.publish(self._own.stats().spool_bytes)
        for adopted in self._adopted:
            adopted.owner.publish(adopted.spool.stats().spool_bytes)
        ours = {self._owner.name, *(adopted.owner.name for adopted in self._adopted)}
        told: dict[str, int] = {}
        for folder in [path for path in self._root.iterdir() if path.is_dir()]:
            told.update(published_bytes(folder))
        others = [size for name, size in told.items() if name not in ours]
        share = self._max_bytes // (len(others) + 1)
        self._budget = max(self._max_bytes - sum(others), share)
        left = self._budget
        try:
            for adopted in self._adopted:
                held = adopted.spool.stats().spool_bytes
                total = self.stats().spool_bytes
                adopted.spool.evict(max(0, held - max(0, total - self._budget)), now_ns)
                left -= adopted.spool.stats().spool_bytes
            self._own.max_bytes = max(0, left)
            self._own.evict(self._own.max_bytes, now_ns)
        except SpoolError as error:
            self._hold_notice("spool_evict", f"a spool file cannot be updated: {error}")

    def _hold_dropped(self, reason: str, events: int) -> None:
        self._held.append(lambda: self._on_dropped(reason, events))

    def _hold_notice(self, cause: str, message: str) -> None:
        self._held.append(lambda: self._on_notice(cause, message))

    def _tell(self) -> None:
        """Call back without the lock: a log handler may block, or export."""
        with process_lock():
            held, self._held = self._held, []
        for call in held:
            call()

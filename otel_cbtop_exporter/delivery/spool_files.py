"""The spool files of one destination that this process holds: its own, and adopted ones.

Belongs here: which file is whose, taking files over, giving them up, and how much of the folder
this process may use. Not here: what is in a file (`spool.py`), and what happens while the disk
cannot be used (`spool_folder.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from otel_cbtop_exporter.delivery.spool import Spool, SpoolError, SpoolStats
from otel_cbtop_exporter.delivery.spool_checks import (
    make_private_folder,
    make_shared_folder,
    network_file_system,
)
from otel_cbtop_exporter.delivery.spool_owner import (
    FOLDER_NAME,
    Owner,
    owner_names,
    published_bytes,
)
from otel_cbtop_exporter.delivery.spool_reports import Reports

__all__ = ["SpoolFiles"]

# The most adopted files at a time; others wait for a later call of `adopt`.
_MOST_ADOPTED = 8
# The most where they must not be joined, because their rows would expire too late.
_MOST_UNJOINED = 64
# How much of each file moves at most at a time, so that no export waits long for it.
_MOVE_BYTES = 1024 * 1024


class _Held(msgspec.Struct):
    owner: Owner
    spool: Spool


class SpoolFiles:
    """Spool files that only this process holds, by `flock` on the owner file beside each.

    Every call needs the spool lock.

    Args:
        folder: The destination's folder, inside the spool's folder.
        destination: The sink's destination, which owner files tell.
        max_bytes: Limit for the whole of the spool's folder, compressed.
        make_spool: Makes the spool for a file, with at most so many bytes.
        reports: Where to report problems.
    """

    def __init__(
        self,
        folder: Path,
        destination: str,
        max_bytes: int,
        make_spool: Callable[[Path, int], Spool],
        reports: Reports,
    ) -> None:
        self._folder = folder
        self._destination = destination
        self._max_bytes = max_bytes
        self._make_spool = make_spool
        self._reports = reports
        self._own: _Held | None = None
        self._adopted: list[_Held] = []
        self._most_adopted = _MOST_ADOPTED

    def own(self) -> Spool:
        """Return this process's own spool; it is made if there is none.

        Raises:
            OSError: The folder cannot be used.
        """
        if self._own is None:
            self._check_place()
            owner = Owner.take_new(self._folder)
            self._own = _Held(owner, self._spool(owner))
        return self._own.spool

    def spools(self) -> list[Spool]:
        """Return all spools, those of dead processes first."""
        return [held.spool for held in self._all()]

    def adopt(self) -> int:
        """Take over the files that dead processes left, oldest first, a few at a time.

        Returns:
            How many were taken over.

        Raises:
            OSError: The folder cannot be used.
        """
        if not self._folder.exists():
            return 0
        self._check_place()
        ours = {held.owner.name for held in self._all()}
        others = [name for name in owner_names(self._folder) if name not in ours]
        if others and len(self._adopted) >= self._most_adopted:
            self._make_room()
        return sum(map(self._adopt_or_say, others))

    def drop_empty(self) -> None:
        """Remove adopted files that have been emptied."""
        for held in self._adopted[:]:
            if not held.spool.stats().events_spooled:
                self._adopted.remove(held)
                self._give_up(held)

    def share(self) -> None:
        """Publish what we hold, look at what others hold, and evict what we hold in excess.

        Raises:
            OSError: The folder cannot be read.
            SpoolError: A file cannot be changed.
        """
        if self._own is None:
            return
        self._leave_removed_file()
        for held in self._all():
            held.owner.publish(held.spool.stats().spool_bytes, self._destination)
        left = self._budget()
        for held in reversed(self._all()):  # newest first: for the oldest nothing may be left
            held.spool.max_bytes = max(0, left)
            held.spool.evict()
            left -= held.spool.stats().spool_bytes

    def give_up(self) -> list[SpoolStats]:
        """Close everything; empty files are removed, the others wait to be taken over.

        Returns:
            What is left in each file.
        """
        left = [self._give_up(held) for held in self._all()]
        self._own = None
        self._adopted = []
        return left

    def leave_to_parent(self) -> None:
        """Forget everything in a forked child; files and locks still belong to the parent."""
        for held in self._all():
            held.owner.close_in_child()
        self._own = None
        self._adopted = []

    def _all(self) -> list[_Held]:
        return self._adopted if self._own is None else [*self._adopted, self._own]

    def _spool(self, owner: Owner) -> Spool:
        return self._make_spool(self._folder / f"{owner.name}.db", self._max_bytes)

    def _check_place(self) -> None:
        make_shared_folder(self._folder.parent)
        make_private_folder(self._folder)
        network = network_file_system(self._folder)
        if network is not None:
            raise OSError(f"it is on a network file system ({network}), where SQLite loses data")

    def _make_room(self) -> None:
        """Move rows of adopted files into the oldest one, so that others can be taken over.

        Otherwise files whose records all wait for a bucket that does not exist would keep those of
        other buckets from being sent.
        """
        # What is in a removed file ends with this process.
        spools = [held.spool for held in self._adopted if not held.spool.was_removed()]
        if not spools:
            return
        oldest = spools[0]
        oldest.max_bytes = self._max_bytes  # so that nothing leaves for it; `share` sets it again
        try:
            for spool in spools[1:]:
                # A row expires only once those before it have.
                if spool.max_age_ns and (spool.oldest_ns() or 0) < (oldest.newest_ns() or 0):
                    self._most_adopted = _MOST_UNJOINED
                    break
                if not spool.hand_over(oldest, _MOVE_BYTES):
                    break  # its later rows come first, or their order would be lost
        except SpoolError as error:
            self._reports.note("spool_adopt", f"spool files cannot be joined: {error}")
        self.drop_empty()

    def _adopt_or_say(self, name: str) -> bool:
        try:
            return self._adopt(name)
        except OSError as error:  # whatever somebody has put there must not block the other files
            self._reports.note("spool_adopt", f"spool file {name}.db is left alone: {error}")
            return False

    def _adopt(self, name: str) -> bool:
        if len(self._adopted) >= self._most_adopted:
            return False
        owner = Owner.try_take(self._folder, name)
        if owner is None:
            return False
        held = _Held(owner, self._spool(owner))
        try:
            if (self._folder / f"{name}.db").exists():
                held.spool.open()
        except SpoolError as error:
            self._reports.note("spool_adopt", f"spool file {name}.db is left alone: {error}")
            held.spool.close()
            owner.release(remove=False)
            return False
        if not held.spool.stats().events_spooled:
            self._give_up(held)
            return False
        self._adopted.append(held)
        return True

    def _leave_removed_file(self) -> None:
        """If somebody removed our file, begin a new one and drain the old one while it is open."""
        if self._own is not None and self._own.spool.was_removed():
            self._reports.note(
                "spool_removed",
                f"the spool file was removed from {self._folder}; what is in it is lost if this "
                "process ends before it is sent",
            )
            self._adopted.append(self._own)
            self._own = None

    def _budget(self) -> int:
        """Return how much we may hold: what the others leave, but at least an equal share."""
        ours = {held.owner.name for held in self._all()}
        others = [
            size
            for folder in self._folder.parent.iterdir()
            if FOLDER_NAME.fullmatch(folder.name) and folder.is_dir()
            for name, size in published_bytes(folder).items()
            if name not in ours
        ]
        return max(self._max_bytes - sum(others), self._max_bytes // (len(others) + 1))

    def _give_up(self, held: _Held) -> SpoolStats:
        left = held.spool.stats()
        empty = not left.events_spooled
        try:
            if empty:
                held.spool.delete()
            else:
                left = held.spool.close()
        except OSError as error:
            self._reports.note("spool_remove", f"a spool file cannot be removed: {error}")
            empty = False
        held.owner.release(remove=empty)
        return left

"""The spool files of one destination that this process holds: its own, and those of the dead.

Belongs here: which file is whose, taking over, giving up, and how much of the folder is ours.
Not here: what is in a file (`spool.py`), and what happens while the disk says no
(`spool_folder.py`).
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

# Taken over at one time; the others wait for the next call of `adopt`.
_MOST_ADOPTED = 8


class _Held(msgspec.Struct):
    owner: Owner
    spool: Spool


class SpoolFiles:
    """Files that nobody else has, by `flock` on the owner file beside each.

    Every call needs the spool lock.

    Args:
        folder: Of the destination, inside of the spool's folder.
        max_bytes: Over the whole of the spool's folder, compressed.
        make_spool: Makes the spool of a file, with so many bytes at most.
        reports: Where to say what is wrong.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        make_spool: Callable[[Path, int], Spool],
        reports: Reports,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._make_spool = make_spool
        self._reports = reports
        self._own: _Held | None = None
        self._adopted: list[_Held] = []

    def own(self) -> Spool:
        """Return the spool of this process; it is made where there is none.

        Raises:
            OSError: The folder is not fit for it.
        """
        if self._own is None:
            self._check_place()
            owner = Owner.take_new(self._folder)
            self._own = _Held(owner, self._spool(owner))
        return self._own.spool

    def spools(self) -> list[Spool]:
        """Return all spools, those of the dead first."""
        return [held.spool for held in self._all()]

    def adopt(self) -> int:
        """Take over what dead processes left, the oldest first, a few at a time.

        Returns:
            How many were taken over.

        Raises:
            OSError: The folder is not fit for it.
        """
        if not self._folder.exists():
            return 0
        self._check_place()
        names = owner_names(self._folder)
        ours = {held.owner.name for held in self._all()}
        return sum(self._adopt_or_say(name) for name in names if name not in ours)

    def drop_empty(self) -> None:
        """Remove the files of the dead that have been emptied."""
        for held in self._adopted[:]:
            if not held.spool.stats().events_spooled:
                self._adopted.remove(held)
                self._give_up(held)

    def share(self) -> None:
        """Tell the others what we hold, see what they hold, and evict what is too much of ours.

        Raises:
            OSError: The folder cannot be read.
            SpoolError: A file cannot be changed.
        """
        if self._own is None:
            return
        self._leave_removed_file()
        for held in self._all():
            held.owner.publish(held.spool.stats().spool_bytes)
        left = self._budget()
        for held in reversed(self._all()):  # what is left over for the oldest may be nothing
            held.spool.max_bytes = max(0, left)
            held.spool.evict()
            left -= held.spool.stats().spool_bytes

    def give_up(self) -> list[SpoolStats]:
        """Close everything; what is empty is removed, the rest is for whoever takes it over.

        Returns:
            What is left in each.
        """
        left = [self._give_up(held) for held in self._all()]
        self._own = None
        self._adopted = []
        return left

    def leave_to_parent(self) -> None:
        """Forget everything in a forked child; the files and the locks stay the parent's."""
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

    def _adopt_or_say(self, name: str) -> bool:
        try:
            return self._adopt(name)
        except OSError as error:  # what somebody put there must not be in the way of the others
            self._reports.note("spool_adopt", f"spool file {name}.db is left alone: {error}")
            return False

    def _adopt(self, name: str) -> bool:
        if len(self._adopted) >= _MOST_ADOPTED:
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
        """Begin a new file where somebody removed ours, and empty the old one while we have it."""
        if self._own is not None and self._own.spool.was_removed():
            self._reports.note(
                "spool_removed",
                f"the spool file was removed from {self._folder}; what is in it is lost if this "
                "process ends before it is sent",
            )
            self._adopted.append(self._own)
            self._own = None

    def _budget(self) -> int:
        """Say how much we may hold: what the others leave, and a fair share in any case."""
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

"""Which process a spool file belongs to: an owner file beside it, held by `flock`.

The kernel releases the lock when the process dies, however it dies. So there are no leases, no
clocks, and no process ids that may belong to another process by now.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path

from otel_cbtop_exporter.delivery.spool_checks import make_private_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # callers get an OSError

__all__ = [
    "FOLDER_NAME",
    "Owner",
    "is_alive",
    "owner_names",
    "published_bytes",
    "told_destination",
]

FOLDER_NAME = re.compile(r".+-[0-9a-f]{16}")
"""The form of a destination folder's name; a volume has other folders too, as `lost+found`."""

_SUFFIX = ".lock"
_MOST_BYTES = 4096


class Owner:
    """A held owner file; made by `take_new` and `try_take` only.

    Attributes:
        name: The spool file's name without its suffix; older names sort first.
    """

    def __init__(self, folder: Path, name: str, descriptor: int) -> None:
        self.name = name
        self._path = folder / (name + _SUFFIX)
        self._descriptor = descriptor

    @classmethod
    def take_new(cls, folder: Path) -> Owner:
        """Become the owner of a spool file that does not exist yet.

        Raises:
            OSError: The folder does not allow it, or the system has no `flock`.
        """
        while True:
            name = f"{time.time_ns()}-{os.getpid()}-{secrets.token_hex(4)}"
            try:
                owner = cls.try_take(folder, name)
            except OSError:  # without `flock`, each try would leave a file
                with suppress(OSError):
                    (folder / (name + _SUFFIX)).unlink()
                raise
            # None if a process that looks for dead owners came between our open and our lock.
            if owner is not None:
                return owner

    @classmethod
    def try_take(cls, folder: Path, name: str, *, publishes: bool = True) -> Owner | None:
        """Lock an owner file, which is made if it is missing.

        Args:
            folder: The destination's folder.
            name: The spool file's name.
            publishes: Whether `publish` will be called; without that, the disk may be read-only.

        Returns:
            The owner, or None if a process holds the file or another process was faster.

        Raises:
            OSError: The folder does not allow it, or the system has no `flock`.
        """
        if fcntl is None:
            raise OSError("this system has no flock, which keeps two processes out of one file")
        path = folder / (name + _SUFFIX)
        make_private_file(path)
        try:
            access = os.O_RDWR if publishes else os.O_RDONLY
            descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # just removed by the process that took it over
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous owner may have removed the file between our open and our lock.
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return cls(folder, name, descriptor)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def publish(self, used_bytes: int, destination: str) -> None:
        """Tell the other processes how many bytes the spool holds, and people where they go."""
        told = b"%020d\n%b\n" % (used_bytes, destination.encode("utf-8", "replace"))
        with suppress(OSError):  # on a full disk they go by what was told last
            os.pwrite(self._descriptor, told, 0)

    def release(self, *, remove: bool) -> None:
        """Give the file up; with `remove`, nothing is left to take over."""
        if remove:
            with suppress(OSError):  # then another process takes it over and finds it empty
                self._path.unlink()
        os.close(self._descriptor)

    def close_in_child(self) -> None:
        """Close the child's copy of the descriptor; the parent keeps the lock."""
        # No unlock: it would release the parent's lock, as both descriptors are one open file.
        with suppress(OSError):  # for example, a daemon has closed all descriptors
            os.close(self._descriptor)


def is_alive(folder: Path, name: str) -> bool:
    """Return whether a process holds a spool file; makes nothing and takes nothing over."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder / (name + _SUFFIX), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # no owner file, or one that cannot be opened
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        return False
    finally:
        os.close(descriptor)  # unlocks it


def owner_names(folder: Path) -> list[str]:
    """Return the names of a folder's spool files and owner files, oldest first."""
    names = {p.name[: -len(p.suffix)] for p in folder.iterdir() if p.suffix in (_SUFFIX, ".db")}
    return sorted(names)


def published_bytes(folder: Path) -> dict[str, int]:
    """Return how many bytes each owner, dead or alive, last published for its spool."""
    told = ((path.stem, _told(path)) for path in folder.glob("*" + _SUFFIX))
    return {name: size for name, size in told if size is not None}


def told_destination(folder: Path, name: str) -> str:
    """Return where the records of a spool file go, or "" if its owner has not told."""
    try:
        _, _, destination = _contents(folder / (name + _SUFFIX)).partition(b"\n")
    except OSError:
        return ""
    return destination.decode("utf-8", "replace").strip()


def _told(path: Path) -> int | None:
    try:
        return int(_contents(path).partition(b"\n")[0] or b"0")
    except (OSError, ValueError):  # just removed, or not written by us
        return None


def _contents(path: Path) -> bytes:
    # Whatever somebody has put there must neither be shown nor hold us up.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        return os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)

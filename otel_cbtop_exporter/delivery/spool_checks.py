"""Checks that a place is fit to keep telemetry: private, ours, not a link, not on a network.

Attributes may hold anything, so other users of the machine must neither be able to read the
telemetry nor to point us at a file of theirs.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

__all__ = [
    "make_private_file",
    "make_private_folder",
    "make_shared_folder",
    "network_file_system",
]

# WAL needs memory that all processes map, which a file server cannot share, and locks over a
# network are not what SQLite and flock take them for.
_NETWORK_TYPES = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"}
    | {"nfs", "nfs4", "ocfs2", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs"}
    | {"fuse.ceph", "fuse.ceph-fuse", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs"}
    | {"fuse.sshfs"}
)
_MOUNTS = Path("/proc/self/mounts")
_OCTAL = re.compile(r"\\([0-7]{3})")


def make_private_folder(path: Path) -> None:
    """Make a folder with mode 0700, or check an existing one.

    Args:
        path: A folder that nobody else uses; its parent must exist.

    Raises:
        OSError: It cannot be made, is a link or no folder, or belongs to another user.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = _check_folder(path, ())
        if stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(0o700)


def make_shared_folder(path: Path) -> None:
    """Make a folder with mode 0700, or check an existing one, which others may use too.

    Args:
        path: If it exists, its mode is left alone: it may be `/var/spool`, and we may be root.

    Raises:
        OSError: It cannot be made, is a link or no folder, or belongs to another user who is not
            root.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        _check_folder(path, (0,))


def make_private_file(path: Path) -> None:
    """Make an empty file with mode 0600, or check an existing one.

    SQLite itself would make it 0644 and would follow a link; it gives its WAL the file's mode.

    Args:
        path: In a folder of ours.

    Raises:
        OSError: It cannot be made, is a link or no regular file, or belongs to another user.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    while True:
        try:
            os.close(os.open(path, flags, 0o600))
        except FileExistsError:
            try:
                found = path.lstat()
            except FileNotFoundError:  # another process has just moved it
                continue
            if not stat.S_ISREG(found.st_mode):
                raise OSError(f"{path} is a link, a regular file was expected") from None
            _check_owner(path, found)
        return


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """Return the type of the network file system that a path is on.

    Args:
        path: An existing path.
        mounts: Text in the format of `/proc/self/mounts`; by default the system's own. On systems
            without that file the answer is always None.

    Returns:
        The type, for example `nfs4`; None if the path is not on a network.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
    real = path.resolve()
    best, found = -1, None
    for line in mounts.split("\n"):  # not splitlines(): names may hold what it also splits at
        _, point, kind, *_ = *line.split(" "), "", "", ""
        # The kernel escapes blanks and the like in octal.
        folder = Path(_OCTAL.sub(lambda digits: chr(int(digits[1], 8)), point))
        # A later mount hides an earlier one of the same folder.
        if (folder == real or folder in real.parents) and len(folder.parts) >= best:
            best, found = len(folder.parts), kind
    return found if found in _NETWORK_TYPES else None


def _check_folder(path: Path, other_users: tuple[int, ...]) -> os.stat_result:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{path} is a link or a file, a folder was expected")
    _check_owner(path, found, other_users)
    return found


def _check_owner(path: Path, found: os.stat_result, other_users: tuple[int, ...] = ()) -> None:
    if hasattr(os, "geteuid") and found.st_uid not in (os.geteuid(), *other_users):
        raise OSError(f"{path} belongs to user {found.st_uid}, not to us ({os.geteuid()})")

"""Checks that a place is fit to keep telemetry."""

import os
import stat

import pytest

from otel_cbtop_exporter.delivery.spool_checks import (
    make_private_file,
    make_private_folder,
    make_shared_folder,
    network_file_system,
)

MOUNTS = """\
proc /proc proc rw 0 0
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/local tmpfs rw 0 0
//server/share /mnt/with\\040blank cifs rw 0 0
user@server: /mnt/sshfs fuse.sshfs rw 0 0
share /mnt/guest virtiofs rw 0 0
server:/over /over nfs rw 0 0
/dev/vdb /over ext4 rw 0 0
tmpfs /mnt/next\u0085line\u2028x tmpfs rw 0 0
server:/x /mnt/\u6570\u636e nfs4 rw 0 0
server:/x /mnt/back\\134slash nfs4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/spool", None),
        ("/home/me/spool", "nfs4"),
        ("/home", "nfs4"),
        ("/homely", None),
        ("/home/local/spool", None),
        ("/mnt/with blank/spool", "cifs"),
        ("/mnt/sshfs/x", "fuse.sshfs"),
        ("/over/x", None),
        ("/mnt/next\u0085line\u2028x", None),
        ("/mnt/\u6570\u636e/x", "nfs4"),
        ("/mnt/back\\slash/x", "nfs4"),
        ("/mnt/guest/x", "virtiofs"),
    ],
)
def test_a_network_file_system_is_recognized(tmp_path, path, kind):
    """A path has the file system of its deepest mount, and of the last mount on one folder."""
    assert network_file_system(type(tmp_path)(path), MOUNTS) == kind


def test_this_machine_has_a_file_system_of_its_own(tmp_path):
    """The system's mount table can be read, and a temporary folder is not on a network mount."""
    assert network_file_system(tmp_path) is None


def test_a_new_file_is_private(tmp_path):
    """A new file has mode 0600 whatever the umask, and an existing file keeps its content."""
    before = os.umask(0)
    try:
        make_private_file(tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    (tmp_path / "file").write_text("kept")
    make_private_file(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("target", ["there", "missing"])
def test_a_link_is_no_file(tmp_path, target):
    """A symbolic link is refused, whether or not its target exists, and no target is created."""
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(OSError, match="link"):
        make_private_file(tmp_path / "link")
    assert not (tmp_path / "missing").exists()


@pytest.fixture
def as_other_user(monkeypatch):
    """Pretend to be a user who owns none of the files; no privilege is needed for that."""
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)


@pytest.mark.parametrize("make", [make_private_file, make_private_folder])
def test_what_belongs_to_others_is_refused(tmp_path, as_other_user, make):
    """A private file or folder of another user is refused, even if that user is root."""
    path = tmp_path / "x"
    path.mkdir() if make is make_private_folder else path.touch()
    with pytest.raises(OSError, match="belongs to user"):
        make(path)


def test_a_shared_folder_may_be_roots(tmp_path, as_other_user):
    """The spool's path may belong to root, but to no other user."""
    path = tmp_path / "x"
    path.mkdir()
    owner = path.stat().st_uid
    if owner == 0:
        make_shared_folder(path)
        os.chown(path, 54_321, -1)
    with pytest.raises(OSError, match="belongs to user"):
        make_shared_folder(path)

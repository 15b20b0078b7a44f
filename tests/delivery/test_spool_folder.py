"""The folder that processes share: who owns which file, its size limit, and its privacy."""

import errno
import fcntl
import os
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path

import pytest

from otel_cbtop_exporter.config import SpoolConfig
from otel_cbtop_exporter.delivery.retry import SYSTEM_CLOCK
from otel_cbtop_exporter.delivery.spool import Spool
from otel_cbtop_exporter.delivery.spool_folder import SpoolFolder, make_spool
from otel_cbtop_exporter.delivery.spool_left import hold
from otel_cbtop_exporter.delivery.spool_owner import Owner
from otel_cbtop_exporter.delivery.spool_reports import Reports
from otel_cbtop_exporter.delivery.spool_rows import MIGRATIONS
from otel_cbtop_exporter.delivery.waiting import Waiting
from tests.delivery.spools import (
    MANY,
    Told,
    bodies,
    empty,
    incompressible,
    make_folder,
    numbered,
)
from tests.descriptors import open_descriptors


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool"


def leave(path, *batches, **options):
    """Act as a process that ends with records in its spool."""
    folder = make_folder(path, **options)
    for batch in batches:
        folder.append(batch)
    folder.close()
    return folder.folder


def test_a_file_that_cannot_be_read_now_is_not_taken_for_empty(path, told):
    """An unreadable file is not taken for empty.

    Otherwise a flush would count as done, and nobody would look at it before the next record.
    """
    folder = make_folder(path, told)
    folder.append(numbered(0, 3))
    (spool,) = folder.spools()
    spool._store.database.after_fork_in_child()  # as in a forked child: every call raises
    assert folder.spools() == [spool]
    assert "spool_read" in told.causes
    folder.close()


def test_making_one_touches_nothing(path):
    """Making a folder object creates nothing on disk before the first record."""
    folder = make_folder(path)
    assert folder.spools() == []
    assert folder.stats().events_spooled == 0
    assert folder.adopt() == 0
    folder.close()
    assert not path.exists()


def test_configuration_says_where_records_wait(tmp_path):
    """Without a path, records wait in memory; with one, in that folder, made absolute at once."""
    options = {"reports": Reports(), "clock": SYSTEM_CLOCK}
    memory = make_spool(SpoolConfig(), "kafka", "x", **options)
    assert isinstance(memory, Spool)
    assert memory.max_bytes == 64 * 1024 * 1024
    disk = make_spool(SpoolConfig(path="relative"), "kafka", "x", **options)
    assert isinstance(disk, SpoolFolder)
    assert disk.folder.parent == Path.cwd() / "relative"


def test_what_a_dead_process_left_is_claimed_in_order_and_removed(path):
    """Records of dead processes are claimed first, oldest process first, then our own.

    The files are removed.
    """
    at = leave(path, numbered(0, 2), numbered(2, 2))
    leave(path, numbered(4, 2))
    folder = make_folder(path)
    folder.append(numbered(6, 2))
    assert folder.adopt() == 2
    assert folder.stats().events_spooled == 8
    assert bodies(empty(folder)) == [b"%d" % n for n in range(8)]
    folder.close()
    assert list(at.iterdir()) == []


def test_what_a_dead_process_left_is_claimed_by_one_live_one(path):
    """Each dead process's file is taken over by exactly one of two live processes."""
    for n in range(3):
        leave(path, numbered(n, 1))
    one, two = make_folder(path), make_folder(path)
    one.append(numbered(10, 1))
    two.append(numbered(20, 1))
    assert one.adopt() == 3
    assert two.adopt() == 0
    one.close()
    assert two.adopt() == 4
    assert bodies(empty(two)) == [b"0", b"1", b"2", b"10", b"20"]
    two.close()


def test_many_dead_are_taken_over_a_few_at_a_time(path):
    """Files of dead processes are taken over a few at a time, and never are many open.

    A thousand crashes must not mean a thousand open files.
    """
    for n in range(12):
        leave(path, numbered(n, 1))
    folder = make_folder(path)
    before = open_descriptors()
    assert folder.adopt() == 8
    at_most = open_descriptors() - before
    first = empty(folder)
    assert folder.adopt() == 4
    assert open_descriptors() - before <= at_most
    assert bodies(first + empty(folder)) == [b"%d" % n for n in range(12)]
    folder.close()


def test_files_that_cannot_be_emptied_do_not_keep_others_from_being_taken_over(path):
    """Full places for adopted files are made free: their rows move into the oldest, in order.

    The files of a bucket that does not exist would keep those of all other buckets otherwise.
    """
    for n in range(30):
        leave(path, numbered(10 * n, 2, lane="missing"))
    leave(path, numbered(500, 3, lane="there"))
    folder = make_folder(path)
    before = open_descriptors()
    folder.adopt()
    at_most = open_descriptors() - before
    while folder.adopt():
        assert open_descriptors() - before <= at_most
    claims = [spool.claim("there", MANY, MANY) for spool in folder.spools()]
    assert bodies([r for claim in claims if claim for r in claim.records]) == [
        b"500",
        b"501",
        b"502",
    ]
    got = []
    for spool in folder.spools():
        while claim := spool.claim("missing", MANY, MANY):
            got += claim.records
            spool.settle(claim)
    assert got == [r for n in range(30) for r in numbered(10 * n, 2, lane="missing")]
    folder.close()


def test_no_row_moves_into_a_file_that_was_removed(path, told):
    """What is safe on disk stays so: a removed file that is still open ends with its process."""
    clock = Clock()
    folder = make_folder(path, told, monotonic=clock)
    folder.append(numbered(0, 1, lane="missing"))
    (file,) = folder.folder.glob("*.db")
    file.unlink()
    clock.now += 10.0
    folder.append(numbered(1, 1, lane="missing"))
    for n in range(1, 11):
        leave(path, numbered(10 * n, 2, lane="missing"))
    while folder.adopt():
        pass
    folder.close()
    assert told.dropped == {"shutdown": 1}
    after = make_folder(path)
    got = []
    while after.adopt():
        got += empty(after)
    left = [r for n in range(1, 11) for r in numbered(10 * n, 2)]
    assert sorted(bodies(got)) == sorted([*bodies(left), b"1"])
    after.close()


def test_joined_files_keep_their_rows_no_longer_than_their_age_limit(path, told):
    """Rows do not move behind younger ones, where they would stay as long as those."""
    second = 10**9
    now = [0]
    options = {"max_age_ms": 1_800_000, "time_ns": lambda: now[0]}
    long_lived = make_folder(path, **options)
    now[0] = 100 * second
    long_lived.append(numbered(0, 1))
    for n in range(1, 10):
        now[0] += second
        leave(path, numbered(n, 1), **options)
    now[0] = 1_850 * second
    long_lived.append(numbered(100, 1))
    long_lived.close()
    clock = Clock()
    folder = make_folder(path, told, monotonic=clock, **options)
    folder.append(numbered(200, 1, lane="new"))
    folder.adopt()
    while folder.adopt():
        pass
    now[0] = 2_000 * second
    clock.now += 10.0
    folder.spools()
    folder.adopt()
    now[0] = 2_001 * second
    clock.now += 10.0
    folder.spools()
    assert told.dropped == {"expired": 10}
    folder.close()


def test_files_that_may_not_be_joined_do_not_keep_others_from_being_taken_over(path):
    """With an age limit, files of processes that lived side by side are more files instead."""
    options = {"max_age_ms": 86_400_000}
    workers = [make_folder(path, **options) for _ in range(12)]
    for round_ in range(2):
        for n, worker in enumerate(workers):
            worker.append(numbered(10 * n + round_, 1, lane="there" if n > 9 else "missing"))
    for worker in workers:
        worker.close()
    folder = make_folder(path, **options)
    while folder.adopt():
        pass
    claims = [spool.claim("there", MANY, MANY) for spool in folder.spools()]
    got = bodies([r for claim in claims if claim for r in claim.records])
    assert sorted(got) == [b"100", b"101", b"110", b"111"]
    folder.close()


def test_a_file_system_without_flock_gets_no_owner_files(path, told, monkeypatch):
    """Each try to use the disk again would leave one otherwise."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    clock = Clock()
    folder = make_folder(path, told, monotonic=clock)
    for n in range(5):
        folder.append(numbered(n, 1))
        clock.now += 10.0
    assert list(folder.folder.iterdir()) == []
    assert empty(folder) == numbered(0, 5)
    folder.close()


def test_what_a_dead_process_left_can_be_taken_out_of_a_read_only_disk(path, monkeypatch):
    """Holding a file by hand needs no write access: a disk may have become read-only by an error."""
    left = leave(path, numbered(0, 3))
    (name,) = [file.stem for file in left.glob("*.db")]
    real = os.open

    def read_only(file, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR) and not flags & os.O_EXCL:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(file, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    with hold(left, name) as held:
        (batch,) = held.batches()
    assert bodies(batch) == [b"0", b"1", b"2"]


def test_a_notice_found_under_the_lock_is_told_after_it(path, told):
    """What a folder has to tell while its caller holds the spool lock is told by a later call."""
    folder = make_folder(path, told)
    folder.append(numbered(0, 1))
    (file,) = folder.folder.glob("*.db")
    file.unlink()
    folder._share_at = 0.0  # due
    assert Waiting(folder.spools).newest_ns() is not None
    assert told.causes == set()
    folder.spools()
    assert told.causes == {"spool_removed"}
    folder.close()


def test_nothing_of_another_destination_is_touched(path):
    """Files of another destination are reported and left unchanged."""
    other = leave(path, numbered(0, 3), destination="elsewhere")
    before = {file: file.read_bytes() for file in other.iterdir()}
    folder = make_folder(path)
    folder.append(numbered(0, 1))
    assert folder.adopt() == 0
    assert folder.foreign() == [other]
    assert len(empty(folder)) == 1
    folder.close()
    assert {file: file.read_bytes() for file in other.iterdir()} == before


def test_what_a_live_process_holds_is_not_reported_as_left(path):
    """Another destination is reported only if no live process holds its files.

    Two destinations in one folder are the usual case.
    """
    neighbour = make_folder(path, destination="elsewhere")
    neighbour.append(numbered(0, 3))
    folder = make_folder(path)
    stranger = folder.folder.parent / "cache" / "app.db"
    stranger.parent.mkdir()
    stranger.touch()
    assert folder.foreign() == []
    neighbour.close()
    assert folder.foreign() == [neighbour.folder]
    folder.close()


def test_what_is_no_spool_file_does_not_hide_the_others(path, told):
    """A folder or link named like a lock file is reported; other files are taken over."""
    at = leave(path, numbered(0, 3))
    (at / "0-folder.lock").mkdir()
    (at / "0-link.lock").symlink_to("/etc/hostname")
    folder = make_folder(path, told)
    assert folder.adopt() == 1
    assert told.causes == {"spool_adopt"}
    assert len(empty(folder)) == 3
    folder.close()


def test_a_newer_file_of_a_dead_process_is_left_alone(path, told):
    """A file written by a later version of the package is left for that version."""
    at = leave(path, numbered(0, 3))
    (file,) = at.glob("*.db")
    data = bytearray(file.read_bytes())
    data[60:64] = (len(MIGRATIONS) + 1).to_bytes(4, "big")  # user_version
    file.write_bytes(data)
    folder = make_folder(path, told)
    assert folder.adopt() == 0
    assert told.causes == {"spool_adopt"}
    folder.close()
    assert file.read_bytes() == bytes(data)


def test_a_file_without_an_owner_is_taken_over(path):
    """A spool file without an owner file, as from a restored backup, is taken over."""
    at = leave(path, numbered(0, 3))
    for file in at.glob("*.lock"):
        file.unlink()
    folder = make_folder(path)
    assert folder.adopt() == 1
    assert len(empty(folder)) == 3
    folder.close()
    assert list(at.iterdir()) == []


def test_an_owner_that_died_before_its_first_record_leaves_nothing(path):
    """An owner file without a spool file is removed."""
    at = leave(path, numbered(0, 1))
    empty_handed = make_folder(path)
    empty_handed.adopt()
    empty(empty_handed)
    (at / "1-2-x.lock").touch(mode=0o600)
    assert empty_handed.adopt() == 0
    assert list(at.iterdir()) == []


def test_folders_and_files_are_private(path):
    """Folders have mode 0700 and all files 0600, WAL included, whatever the umask."""
    before = os.umask(0)
    try:
        folder = make_folder(path)
        folder.append(numbered(0, 1))
    finally:
        os.umask(before)
    modes = {p: stat.S_IMODE(p.lstat().st_mode) for p in [path, *path.rglob("*")]}
    assert len(modes) == 6
    assert {mode for p, mode in modes.items() if p.is_dir()} == {0o700}
    assert {mode for p, mode in modes.items() if p.is_file()} == {0o600}
    empty(folder)
    folder.close()


def test_an_open_folder_of_the_destination_is_closed_to_others(path):
    """A destination's folder that was opened to others is made private again."""
    at = leave(path, numbered(0, 1))
    at.chmod(0o755)
    folder = make_folder(path)
    folder.append(numbered(0, 1))
    assert stat.S_IMODE(at.stat().st_mode) == 0o700
    folder.close()


def test_the_mode_of_a_folder_that_others_use_is_left_alone(path):
    """The mode of an existing spool path is not changed.

    It may be /var/spool, and we may be root.
    """
    path.mkdir()
    path.chmod(0o755)
    leave(path, numbered(0, 1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def assert_refused(folder, told, word):
    folder.append(numbered(0, 2))
    assert told.causes == {"spool_in_memory"}
    assert word in told.notices[0][1]
    assert len(empty(folder)) == 2
    folder.close()


def test_a_link_in_place_of_the_folder_is_refused(tmp_path, path, told):
    """A link in place of the spool folder is refused and reported, and records wait in memory."""
    (tmp_path / "real").mkdir()
    path.symlink_to(tmp_path / "real")
    assert_refused(make_folder(path, told), told, "is a link")
    assert list((tmp_path / "real").iterdir()) == []


def test_a_link_in_place_of_the_folder_of_the_destination_is_refused(tmp_path, path, told):
    """A link in place of the destination's folder is refused in the same way."""
    folder = make_folder(path, told)
    path.mkdir()
    (tmp_path / "real").mkdir()
    folder.folder.symlink_to(tmp_path / "real")
    assert_refused(folder, told, "is a link")
    assert list((tmp_path / "real").iterdir()) == []


def test_a_link_in_place_of_a_spool_file_is_not_followed(tmp_path, path, told):
    """Take-over does not follow a link in place of a spool file."""
    at = leave(path, numbered(0, 1))
    (file,) = at.glob("*.db")
    file.rename(tmp_path / "elsewhere.db")
    file.symlink_to(tmp_path / "elsewhere.db")
    folder = make_folder(path, told)
    assert folder.adopt() == 0
    assert "spool_adopt" in told.causes
    folder.close()
    assert (tmp_path / "elsewhere.db").exists()


def test_a_folder_that_cannot_be_made_means_memory(tmp_path, told):
    """If the folder cannot be made, here because a file is in its place, records wait in memory."""
    (tmp_path / "file").touch()
    assert_refused(make_folder(tmp_path / "file", told), told, "expected")


def test_a_missing_folder_above_is_made(tmp_path):
    """Missing parent folders of the spool path are created."""
    leave(tmp_path / "a" / "b" / "c", numbered(0, 1))
    assert len(list((tmp_path / "a" / "b" / "c").iterdir())) == 1


def test_the_files_of_a_folder_together_stay_within_the_limit(path, told):
    """Processes that share a folder each evict their own oldest records to keep to its limit."""
    clock = Clock()
    options = {"max_bytes": 400_000, "monotonic": clock}
    one, two = make_folder(path, told, **options), make_folder(path, told, **options)
    for seed in range(60):
        for folder in (one, two):
            folder.append(incompressible(1, 10_000, seed))
            clock.now += 3
    total = one.stats().spool_bytes + two.stats().spool_bytes
    assert 350_000 < total <= 420_000  # one appends after the other has looked
    assert abs(one.stats().events_spooled - two.stats().events_spooled) <= 1
    left = one.stats().events_spooled + two.stats().events_spooled
    assert told.dropped == {"spool_full": 120 - left}
    empty(one)
    empty(two)
    one.close()
    two.close()


def test_records_in_a_folder_are_as_old_as_its_clock_says(path, told):
    """A file of a folder asks the folder's clock, at an append and at a claim."""
    now = [100 * 10**9]
    folder = make_folder(path, told, max_age_ms=10_000, time_ns=lambda: now[0])
    folder.append(numbered(0, 2))
    assert folder.stats().oldest_ns == 100 * 10**9
    now[0] += 11 * 10**9
    folder.append(numbered(2, 1))
    assert told.dropped == {"expired": 2}
    now[0] += 11 * 10**9
    (spool,) = folder.spools()
    assert spool.claim("lane", MANY, MANY) is None
    assert folder.stats().events_spooled == 0
    assert told.dropped == {"expired": 3}
    folder.close()


def test_what_is_not_ours_in_the_folder_takes_no_room(path, told):
    """Files of other programs in the folder do not count towards the limit.

    Others keep lock files below `/var/spool` too, and their content is not a number of bytes.
    """
    (path / "lpd").mkdir(parents=True)
    (path / "lpd" / "queue.lock").write_text("1732838400\n")
    clock = Clock()
    folder = make_folder(path, told, max_bytes=1_000_000, monotonic=clock)
    for seed in range(90):
        clock.now += 5
        folder.append(incompressible(1, 10_000, seed))
    assert told.dropped == {}
    folder.close()


def test_a_dead_destination_does_not_starve_ours(path, told):
    """Each destination has a fair share of the limit, however full the folder is."""
    clock = Clock()
    other = make_folder(path, destination="elsewhere", max_bytes=400_000, monotonic=clock)
    for seed in range(39):
        other.append(incompressible(1, 10_000, seed))
        clock.now += 3
    folder = make_folder(path, told, max_bytes=400_000, monotonic=clock)
    for seed in range(30):
        folder.append(incompressible(1, 10_000, seed))
        clock.now += 3
    assert 190_000 < folder.stats().spool_bytes <= 210_000
    folder.close()
    other.close()


def test_what_the_dead_left_leaves_first_when_there_is_too_much(path, told):
    """Records of dead processes, which are the oldest, are evicted first."""
    clock = Clock()
    leave(path, *(incompressible(1, 10_000, seed) for seed in range(20)))
    folder = make_folder(path, told, max_bytes=300_000, monotonic=clock)
    assert folder.adopt() == 1
    for seed in range(20, 40):
        folder.append(incompressible(1, 10_000, seed))
        clock.now += 3
    folder.spools()
    kept = empty(folder)
    assert 25 <= len(kept) <= 30
    assert bodies(kept) == [incompressible(1, 10_000, n)[0].body for n in range(40)][-len(kept) :]
    assert told.dropped == {"spool_full": 40 - len(kept)}
    folder.close()


def test_an_idle_process_evicts_what_became_too_much(path, told):
    """Looking for records to send is enough to evict; it needs no append."""
    clock = Clock()
    one = make_folder(path, told, max_bytes=400_000, monotonic=clock)
    for seed in range(39):
        one.append(incompressible(1, 10_000, seed))
    one.spools()
    two = make_folder(path, max_bytes=400_000, monotonic=clock)
    two.append(incompressible(1, 10_000))
    clock.now += 3
    two.append(incompressible(1, 10_000))
    one.spools()
    assert one.stats().spool_bytes <= 400_000 - 10_000
    assert told.dropped["spool_full"] >= 1
    one.close()
    two.close()


def test_a_file_that_was_removed_is_left_for_a_new_one(path, told):
    """If its file is removed, a spool still sends what was in it and starts a new file."""
    clock = Clock()
    folder = make_folder(path, told, monotonic=clock)
    folder.append(numbered(0, 2))
    for file in folder.folder.iterdir():
        file.unlink()
    clock.now += 3
    folder.append(numbered(2, 2))
    assert told.causes == {"spool_removed"}
    assert bodies(empty(folder)) == [b"0", b"1", b"2", b"3"]
    folder.append(numbered(4, 2))
    folder.close()
    again = make_folder(path)
    assert again.adopt() == 1
    assert bodies(empty(again)) == [b"4", b"5"]
    again.close()


def test_a_removed_file_that_is_never_sent_is_counted(path, told):
    """Records in a removed file that were not sent are counted as dropped when the process ends."""
    folder = make_folder(path, told)
    folder.append(numbered(0, 2))
    for file in folder.folder.iterdir():
        file.unlink()
    folder.close()
    assert told.dropped == {"shutdown": 2}


def test_closing_twice_is_closing_once(path):
    """Closing twice has no further effect, and a later append starts a new file."""
    folder = make_folder(path)
    folder.append(numbered(0, 1))
    folder.close()
    folder.close()
    folder.append(numbered(1, 1))
    assert folder.adopt() == 1
    assert bodies(empty(folder)) == [b"0", b"1"]
    folder.close()


def test_no_descriptor_is_left(path):
    """No descriptor leaks from a spool that was emptied or taken over."""
    before = len(list(Path("/dev/fd").iterdir()))
    leave(path, numbered(0, 1))
    folder = make_folder(path)
    folder.append(numbered(1, 1))
    folder.adopt()
    claim = folder.spools()[0].claim("lane", MANY, MANY)
    claim.spool.settle(claim)
    folder.close()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_full_synchronous_is_asked_of_sqlite(path):
    """The `synchronous` option, which guards against power cuts, reaches SQLite."""
    for word, number in (("normal", 1), ("full", 2)):
        folder = make_folder(path, synchronous=word)
        folder.append(numbered(0, 1))
        (spool,) = folder.spools()
        connection = spool._store.database._connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (number,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA secure_delete").fetchone() == (0,)
        empty(folder)
        folder.close()


def test_without_flock_records_wait_in_memory(path):
    """Where the system has no flock (Windows), the modules import and records wait in memory."""
    import subprocess

    code = """
import sys
import random, opentelemetry.sdk.trace, opentelemetry.sdk.metrics, opentelemetry.sdk._logs
sys.modules["fcntl"] = None
import os
del os.register_at_fork, os.geteuid, os.O_NOFOLLOW, os.O_CLOEXEC
from pathlib import Path
from otel_cbtop_exporter.delivery import dead_letters
from tests.delivery.spools import *
told = Told()
folder = make_folder(Path(sys.argv[1]), told)
folder.append(numbered(0, 3))
assert told.causes == {"spool_in_memory"}, told.notices
assert len(empty(folder)) == 3
folder.close()
"""
    subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, cwd=Path(__file__).parents[2]
    )


def test_looking_for_the_dead_leaves_no_descriptor_open(tmp_path):
    """Checking a live neighbour leaks no descriptor.

    Neighbours are checked every two seconds for as long as the process lives.
    """
    living, looking = make_folder(tmp_path), make_folder(tmp_path)
    living.append(numbered(0, 1))
    looking.append(numbered(1, 1))
    before = open_descriptors()
    for _ in range(5):
        assert looking.adopt() == 0
    assert open_descriptors() == before
    living.close()
    looking.close()


def test_a_file_that_is_left_alone_is_nobodys(tmp_path):
    """A file of a newer schema is not held, so that the version that wrote it can take it over."""
    first = make_folder(tmp_path)
    first.append(numbered(0, 2))
    first.close()
    (path,) = first.folder.glob("*.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    second = make_folder(tmp_path)
    before = open_descriptors()
    for _ in range(3):
        assert second.adopt() == 0
    assert open_descriptors() == before
    owner = Owner.try_take(first.folder, path.stem)
    assert owner is not None
    owner.release(remove=False)
    second.close()

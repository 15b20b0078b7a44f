"""A disk that is full or refuses writes otherwise, and later takes records again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.delivery.spools import Told, bodies, empty, incompressible, make_folder, numbered

ROOT = Path(__file__).parents[2]

# Runs in a process of its own, because a quota applies to a process. `squeeze` leaves next to no
# space and `relax` frees it; QUOTA and SMALL_DISK below define both.
SCENARIO = """
told = Told()
now = [0.0]
folder = make_folder(path, told, monotonic=lambda: now[0])

def append(first, last):
    for n in range(first, last):
        now[0] += 2
        folder.append([Record(b"%d " % n + incompressible(1, 2_000, n)[0].body, lane="l")])

def numbers(records):
    return [int(r.body.split(b" ")[0]) for r in records]

append(0, 50)
squeeze()
append(50, 150)
assert "spool_in_memory" in told.causes, told.notices
assert folder.stats().events_spooled == 150
assert told.dropped == {}, told.dropped
if len(sys.argv) > 2 and sys.argv[2] == "drain":
    # The sink is back while the disk is still full: everything leaves, in order, once.
    assert numbers(empty(folder)) == list(range(150))
    assert folder.stats().events_spooled == 0
    append(150, 160)
    assert numbers(empty(folder)) == list(range(150, 160))
    relax()
    append(160, 170)
    folder.close()
    again = make_folder(path, told)
    again.adopt()
    assert numbers(empty(again)) == list(range(160, 170))
    again.close()
else:
    relax()
    append(150, 200)
    assert "spool_on_disk" in told.causes, told.notices
    folder.close()  # nothing is in memory alone any more
    again = make_folder(path, told)
    assert again.adopt() == 1
    assert numbers(empty(again)) == list(range(200))
    again.close()
assert told.dropped == {}, told.dropped
assert not [p for p in folder.folder.iterdir()], list(folder.folder.iterdir())
"""

HEAD = """
import os, resource, sys
from pathlib import Path
from otel_cbtop_exporter.sinks.base import Record
from tests.delivery.spools import *
path = Path(sys.argv[1])
"""

QUOTA = """
def squeeze():
    used = max(p.stat().st_size for p in path.rglob("*") if p.is_file())
    resource.setrlimit(resource.RLIMIT_FSIZE, (used + 10_000, resource.RLIM_INFINITY))

def relax():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
"""

SMALL_DISK = """
ballast = path.parent / "ballast"

def squeeze():
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4_096))
        except OSError:
            pass

def relax():
    ballast.unlink()
"""


def run(command, code, *arguments):
    subprocess.run(
        [*command, sys.executable, "-c", HEAD + code + SCENARIO, *map(str, arguments)],
        check=True,
        cwd=ROOT,
        timeout=120,
    )


def in_small_disk(folder):
    """Return a command that runs another one on a small file system, or None if not allowed."""
    mount = f'mount -t tmpfs -o size=4m none "{folder}" && exec "$@"'
    for unshare in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        command = [*unshare, "sh", "-c", mount, "sh"]
        if (
            shutil.which("unshare")
            and not subprocess.run([*command, "true"], check=False, stderr=-3).returncode
        ):
            return command
    return None


@pytest.mark.faults
@pytest.mark.parametrize("sink", ["away", "drain"])
def test_a_quota_then_space_again_loses_nothing(tmp_path, sink):
    """While a file size limit makes SQLite fail with I/O errors, records wait in memory.

    They go back to disk in order.
    """
    run([], QUOTA, tmp_path / "spool", sink)


@pytest.mark.faults
@pytest.mark.parametrize("sink", ["away", "drain"])
def test_a_full_disk_then_space_again_loses_nothing(tmp_path, sink):
    """While a small file system is full, records wait in memory, and go back in order.

    A quota is used where none can be mounted.
    """
    command = in_small_disk(tmp_path)
    if command is None:
        run([], QUOTA, tmp_path / "spool", sink)
    else:
        run(command, SMALL_DISK, tmp_path / "spool", sink)


@pytest.fixture
def refusing(tmp_path):
    """A path where no folder can be made until the test removes the file in its place."""
    path = tmp_path / "spool"
    path.touch()
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_while_the_disk_says_no_records_are_in_memory_and_go_back_in_order(refusing):
    """Records wait in memory while the disk refuses them, and go back in order.

    Both changes are reported once, and the disk is tried again after a second.
    """
    told = Told()
    now = [0.0]
    folder = make_folder(refusing, told, monotonic=lambda: now[0])
    folder.append(numbered(0, 2))
    assert told.causes == {"spool_in_memory"}
    refusing.unlink()
    now[0] = 0.5
    folder.append(numbered(2, 2))
    assert not refusing.exists()
    now[0] = 1.0
    folder.append(numbered(4, 2))
    assert told.notices[-1][0] == "spool_on_disk"
    folder.close()
    again = make_folder(refusing)
    assert again.adopt() == 1
    assert bodies(empty(again)) == [b"%d" % n for n in range(6)]
    again.close()


def test_what_is_being_sent_stays_in_memory_and_is_next(refusing):
    """A claim stays in memory when other records go back to disk, and keeps its order."""
    now = [0.0]
    folder = make_folder(refusing, monotonic=lambda: now[0])
    folder.append(numbered(0, 2))
    folder.append(numbered(2, 2))
    (memory,) = folder.spools()
    claim = memory.claim("lane", 2, 100)
    refusing.unlink()
    now[0] = 1.0
    folder.append(numbered(4, 2))
    assert memory.stats().events_spooled == 2
    claim.spool.settle(claim, claim.records[1:])
    assert bodies(empty(folder)) == [b"1", b"2", b"3", b"4", b"5"]
    folder.close()


def test_much_in_memory_goes_back_a_part_at_a_time(refusing):
    """A large backlog goes back to disk in parts, so that no append takes long.

    The order is kept.
    """
    now = [0.0]
    folder = make_folder(refusing, monotonic=lambda: now[0])
    sent = []
    for seed in range(24):
        sent += incompressible(1, 1_000_000, seed)
        folder.append(sent[-1:])
    refusing.unlink()
    now[0] = 1.0
    places = []
    for seed in range(24, 30):
        sent += incompressible(1, 1_000, seed)
        folder.append(sent[-1:])
        places.append(len(folder.spools()))
    assert places == [2, 2, 1, 1, 1, 1]
    assert empty(folder) == sent
    folder.close()


def test_memory_overflows_counted(refusing):
    """If the disk stays unusable, the oldest records are dropped; the rest counts at shutdown."""
    told = Told()
    folder = make_folder(refusing, told, max_bytes=100_000)
    for seed in range(20):
        folder.append(incompressible(1, 10_000, seed))
    left = folder.stats().events_spooled
    assert told.dropped == {"spool_full": 20 - left}
    folder.close()
    assert told.dropped == {"spool_full": 20 - left, "shutdown": left}


def test_memory_is_put_on_disk_at_the_end_if_it_can_be(refusing):
    """Shutdown tries the disk once more, also for claimed records."""
    folder = make_folder(refusing)
    folder.append(numbered(0, 2))
    folder.append(numbered(2, 1))
    (memory,) = folder.spools()
    assert len(memory.claim("lane", 2, 100).records) == 2
    refusing.unlink()
    folder.close()
    again = make_folder(refusing)
    assert again.adopt() == 1
    assert len(empty(again)) == 3
    again.close()


MEMORY_FLAT = """
import resource, sys
from pathlib import Path
from tests.delivery.spools import *
folder = make_folder(Path(sys.argv[1]))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
def fill(first, count):
    for seed in range(first, first + count):
        folder.append(incompressible(100, 1_000, seed))
        for spool in folder.spools():  # a sink that is away
            claim = spool.claim("lane", 1_000, MANY)
            spool.settle(claim, claim.records)
fill(0, 200)
before = peak()
fill(200, 1_000)
grown = peak() - before
assert grown < 16 * 1024 * 1024, f"{grown} bytes for 100 MB"
again = folder.stats()
assert again.events_spooled == 120_000
folder.close()
late = make_folder(Path(sys.argv[1]))
before = peak()
late.adopt()
assert late.stats() == again
(spool,) = late.spools()
spool.claim("lane", 1_000, MANY)
assert peak() - before < 16 * 1024 * 1024
late.close()
"""


@pytest.mark.faults
def test_memory_is_flat_during_an_outage_with_the_spool_on_disk(tmp_path):
    """A hundred megabytes on disk use no memory, neither while appended nor when taken over."""
    subprocess.run(
        [sys.executable, "-c", MEMORY_FLAT, str(tmp_path)], check=True, cwd=ROOT, timeout=170
    )


def test_a_folder_without_permission_means_memory(tmp_path):
    """A read-only folder is reported, and records wait in memory.

    The test drops root privileges, if it has them.
    """
    code = """
import os, sys
from pathlib import Path
from tests.delivery.spools import *
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65_534)
    os.setuid(65_534)
told = Told()
folder = make_folder(Path(sys.argv[1]) / "locked" / "spool", told)
folder.append(numbered(0, 3))
assert told.causes == {"spool_in_memory"}, told.notices
assert len(empty(folder)) == 3
folder.close()
"""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    assert os.access(tmp_path, os.R_OK)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)

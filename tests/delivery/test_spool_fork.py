"""Forks while other threads are inside SQLite, and who owns which file afterwards."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from otel_cbtop_exporter.delivery.spool import SpoolError
from tests.delivery.spools import MANY, Told, bodies, empty, make_folder, make_spool, numbered

CHILD_SECONDS = 60


def in_child(function):
    """Run a function in a forked child; fail if it raises, returns False, or hangs."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if function() in (None, True) else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + CHILD_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0, "the child failed"
            return
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


# Python 3.12 warns about every fork in a process with threads, which is what is tested here.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_fork_while_another_thread_appends_neither_hangs_nor_loses_a_record(tmp_path, kind):
    """A hundred forks beside two appending threads do not hang, and no process loses a record."""
    told = Told()
    place = make_spool(None, told) if kind == "memory" else make_folder(tmp_path, told)
    stop = threading.Event()
    counts = [0, 0]

    def append(index):
        # Where forks are slow, the backlog must still fit into memory.
        while not stop.is_set() and counts[index] < 250_000:
            place.append(numbered(counts[index], 5, f"lane{index}"))
            counts[index] += 5

    threads = [threading.Thread(target=append, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()

    def child():
        place.append(numbered(0, 4, "child"))
        if kind == "memory":
            return bodies(empty(place)) == [b"0", b"1", b"2", b"3"]
        place.close()
        return None

    try:
        for _ in range(100):
            in_child(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if kind == "folder":
        children = 0
        while children < 100 and (adopted := place.adopt()):
            children += adopted
            for _ in range(adopted):
                spool = place.spools()[0]
                claim = spool.claim("child", MANY, MANY)
                assert bodies(claim.records) == [b"0", b"1", b"2", b"3"]
                spool.settle(claim)
            place.spools()
        assert children == 100
    got = empty(place)
    for index, count in enumerate(counts):
        assert bodies(r for r in got if r.lane == f"lane{index}") == [
            b"%d" % n for n in range(count)
        ]
    assert told.dropped == {}
    place.close()


def test_a_memory_spool_stays_the_parents(tmp_path):
    """A child's spool in memory starts empty, and counts none of the parent's as dropped."""
    told = Told()
    spool = make_spool(None, told)
    spool.append(numbered(0, 5))

    def child():
        assert spool.stats().events_spooled == 0
        assert spool.lanes() == []
        spool.append(numbered(7, 2))
        assert bodies(empty(spool)) == [b"7", b"8"]
        spool.close()
        assert told.dropped == {}

    in_child(child)
    assert bodies(empty(spool)) == [b"0", b"1", b"2", b"3", b"4"]
    spool.close()


def test_the_file_of_the_parent_is_not_the_childs(tmp_path):
    """In a child, the parent's spool on a file refuses every call and leaves the file alone."""
    spool = make_spool(tmp_path / "spool.db")
    spool.append(numbered(0, 5))

    def child():
        with pytest.raises(SpoolError, match="forked"):
            spool.append(numbered(0, 1))
        spool.close()

    in_child(child)
    assert len(empty(spool)) == 5
    spool.close()


def test_a_child_inherits_no_open_file(tmp_path):
    """A child inherits no database, WAL or owner file.

    Closing one there could harm the parent's.
    """
    place = make_folder(tmp_path)
    place.append(numbered(0, 2))
    files = {file.stat().st_ino for file in place.folder.iterdir()}
    assert len(files) == 4

    def child():
        # `exists` follows the link; the descriptor of the listing itself is closed by now.
        inherited = [name for name in Path("/dev/fd").iterdir() if name.exists()]
        assert not files & {os.fstat(int(name.name)).st_ino for name in inherited}

    in_child(child)
    empty(place)
    place.close()


def test_a_child_has_a_file_of_its_own(tmp_path):
    """A child writes to its own file, and cannot take over the parent's while the parent lives."""
    place = make_folder(tmp_path)
    place.append(numbered(0, 2))

    def child():
        assert place.stats().events_spooled == 0
        place.append(numbered(10, 2))
        assert place.adopt() == 0  # the parent is alive
        assert len(list(place.folder.glob("*.db"))) == 2
        place.close()

    in_child(child)
    assert len(list(place.folder.glob("*.lock"))) == 2
    place.append(numbered(2, 2))
    assert place.adopt() == 1
    assert bodies(empty(place)) == [b"10", b"11", b"0", b"1", b"2", b"3"]
    place.close()
    assert list(place.folder.iterdir()) == []


def test_the_child_does_not_hold_the_lock_of_a_dead_parent(tmp_path):
    """When a parent dies its file is free, even if a child lives on."""
    place = make_folder(tmp_path)
    reads, writes = os.pipe()

    def middle():
        place.append(numbered(0, 3))
        grandchild = os.fork()
        if grandchild == 0:
            os.close(writes)
            os.read(reads, 1)  # blocks until the test is over
            os._exit(0)

    try:
        in_child(middle)
        assert place.adopt() == 1
        assert len(empty(place)) == 3
        place.close()
    finally:
        os.close(writes)
        os.close(reads)


def test_what_was_taken_over_stays_with_the_parent(tmp_path):
    """A file that the parent took over stays with the parent after a fork."""
    dead = make_folder(tmp_path)
    dead.append(numbered(0, 2))
    dead.close()
    place = make_folder(tmp_path)
    assert place.adopt() == 1

    def child():
        assert place.adopt() == 0
        assert place.spools() == []

    in_child(child)
    assert len(empty(place)) == 2
    place.close()


FORKS_IN_C = """
import _imp, ctypes, os, sys, threading
from pathlib import Path
from otel_cbtop_exporter.delivery.spool_lock import spool_lock
from tests.delivery.spools import *
place = make_folder(Path(sys.argv[1]))
memory = make_spool()
place.append(numbered(0, 2))
memory.append(numbered(0, 2))
held, release = threading.Event(), threading.Event()

def hold():
    with spool_lock():
        held.set()
        release.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
_imp.acquire_lock()  # Python 3.13 aborts in the child without it
child = ctypes.PyDLL(None).fork()
if child == 0:
    ctypes.pythonapi.PyOS_AfterFork_Child()
    place.append(numbered(5, 1))
    memory.append(numbered(5, 1))
    good = bodies(empty(memory)) == bodies(empty(place)) == [b"5"]
    place.close()
    os._exit(0 if good else 1)
_imp.release_lock()
status = os.waitpid(child, 0)[1]
release.set()
thread.join()
good = len(empty(place)) == len(empty(memory)) == 2
place.close()
sys.exit(0 if good and status == 0 else 1)
"""


def test_a_fork_in_c_does_not_hang(tmp_path):
    """A fork in C, as in uWSGI, neither hangs nor mixes up records while the lock is held.

    Only Python's own after-fork handlers run in the child.
    """
    subprocess.run(
        [sys.executable, "-c", FORKS_IN_C, str(tmp_path)],
        check=True,
        timeout=CHILD_SECONDS,
        cwd=Path(__file__).parents[2],
    )

"""JSON Lines files: their place, their permissions, and what happens if one cannot be written."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import textwrap
import threading

import pytest

from otel_cbtop_exporter.config import JsonLinesConfig
from otel_cbtop_exporter.errors import ConfigError
from otel_cbtop_exporter.events import Event, decode_event
from otel_cbtop_exporter.sinks import append_file
from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink
from tests.descriptors import open_descriptors
from tests.sinks.conformance import assert_partition, numbered_events, records_of

# 2026-11-24 05:06:07 UTC
NOW_NS = 1_795_496_767_000_000_000


@pytest.fixture
def make_sink():
    """Make sinks, and close them at the end."""
    sinks = []

    def make(path, **options):
        clocks = {n: options.pop(n) for n in ("time_ns", "monotonic") if n in options}
        sinks.append(JsonLinesSink(JsonLinesConfig(path=str(path), **options), **clocks))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close(10)


def write(sink, count=3, **kwargs):
    records = records_of(sink, numbered_events(count, **kwargs))
    result = sink.write(records, 10)
    assert_partition(result, records)
    return result


def test_each_line_is_an_event(make_sink, tmp_path):
    """Each line decodes to the event that was written."""
    sink = make_sink(tmp_path / "a.jsonl")
    events = numbered_events(3)
    sink.write(records_of(sink, events), 10)
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines()
    assert [decode_event(line).fields for line in lines] == [e.fields for e in events]


def test_an_event_that_json_cannot_carry_is_rejected_alone(make_sink, tmp_path):
    """An event that JSON cannot represent is rejected alone, with its reason."""
    good = numbered_events(2)
    bad = Event("m", {}, {"value": float("nan")}, 7)
    encoded = make_sink(tmp_path / "a").encode([good[0], bad, good[1]])
    assert len(encoded.records) == 2
    assert [(r.reason, r.record.timestamp_ns) for r in encoded.rejected] == [("invalid", 7)]
    assert "'value'" in encoded.rejected[0].detail


def test_constructing_touches_nothing(make_sink, tmp_path):
    """Neither the file nor its folder is created before the first write."""
    make_sink(tmp_path / "folder" / "a.jsonl").close(1)
    assert list(tmp_path.iterdir()) == []


def test_placeholders_are_filled_in_at_each_write(make_sink, tmp_path):
    """{pid}, {date} and {hour} are filled in at each write, in UTC, and folders are created."""
    now = [NOW_NS]
    sink = make_sink(tmp_path / "{date}" / "{hour}" / "{pid}.jsonl", time_ns=lambda: now[0])
    write(sink)
    now[0] += 3_600_000_000_000
    write(sink)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.jsonl"))
    assert names == [f"2026-11-24/05/{os.getpid()}.jsonl", f"2026-11-24/06/{os.getpid()}.jsonl"]


def test_an_unknown_placeholder_is_an_error():
    """An unknown placeholder raises an error instead of becoming a file name."""
    with pytest.raises(ConfigError, match="jsonlines.path is '{host}.jsonl'"):
        JsonLinesConfig(path="{host}.jsonl")


def test_tilde_is_the_home_folder(make_sink, tmp_path, monkeypatch):
    """~ stands for the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write(make_sink("~/a.jsonl"))
    assert (tmp_path / "a.jsonl").exists()


def test_the_folder_of_a_relative_path_is_fixed_at_the_start(make_sink, tmp_path, monkeypatch):
    """A relative path is resolved at the start, for daemons that change their working directory."""
    monkeypatch.chdir(tmp_path)
    sink = make_sink("a.jsonl")
    monkeypatch.chdir("/")
    write(sink)
    assert (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(("mode", "expected"), [(None, 0o640), ("0664", 0o664), ("600", 0o600)])
def test_the_mode_is_exact(make_sink, tmp_path, mode, expected):
    """A new file has exactly the configured mode, 0640 by default, whatever the umask."""
    umask = os.umask(0o077)
    try:
        write(make_sink(tmp_path / "a", **({"mode": mode} if mode else {})))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == expected


def test_the_mode_of_an_existing_file_stays(make_sink, tmp_path):
    """An existing file keeps its mode."""
    (tmp_path / "a").touch(0o600)
    write(make_sink(tmp_path / "a"))
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_symbolic_link_is_not_followed(make_sink, tmp_path):
    """Records for a path that is a link are kept, and the link's target is not touched."""
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    result = write(make_sink(tmp_path / "a"))
    assert len(result.kept) == 3
    assert result.error_type == "ELOOP"
    assert result.error.endswith("it is a symbolic link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_path_that_cannot_be_written_names_its_option(make_sink, tmp_path):
    """The error names the option, its variable, the path and the cause; the records are kept."""
    (tmp_path / "file").touch()
    result = write(make_sink(tmp_path / "file" / "a.jsonl"))
    assert len(result.kept) == 3
    assert result.error == (
        "jsonlines.path (OTEL_EXPORTER_CBTOP_JSONLINES_PATH) "
        f"'{tmp_path}/file/a.jsonl' cannot be written: Not a directory"
    )
    assert result.error_type == "NotADirectoryError"


def test_a_folder_instead_of_a_file_keeps_the_records(make_sink, tmp_path):
    """A path that is a folder keeps the records and raises nothing."""
    result = write(make_sink(tmp_path))
    assert len(result.kept) == 3
    assert "Is a directory" in result.error


def test_what_was_kept_is_written_once_the_path_can_be(make_sink, tmp_path):
    """The same sink delivers kept records once the path can be written."""
    blocker = tmp_path / "folder"
    blocker.touch()
    sink = make_sink(blocker / "a.jsonl")
    kept = write(sink).kept
    blocker.unlink()
    assert len(sink.write(kept, 10).delivered) == 3
    assert len((blocker / "a.jsonl").read_bytes().splitlines()) == 3


def test_a_name_that_no_file_system_has_keeps_the_records(make_sink, tmp_path):
    """A path with a lone surrogate keeps the records and raises nothing."""
    result = write(make_sink(str(tmp_path) + "/\ud800"))
    assert len(result.kept) == 3


@pytest.mark.parametrize("tail", [b'{"half":', b"x"])
def test_a_torn_last_line_does_not_eat_the_next(make_sink, tmp_path, tail):
    """After a torn line of a killed writer, the next batch starts on a new line."""
    (tmp_path / "a").write_bytes(b"{}\n" + tail)
    write(make_sink(tmp_path / "a"), 2)
    lines = (tmp_path / "a").read_bytes().split(b"\n")
    assert lines[:2] == [b"{}", tail]
    assert [decode_event(line).fields["value"] for line in lines[2:4]] == [0, 1]
    assert lines[4:] == [b""]


def test_a_line_torn_by_a_neighbour_is_noticed_later_too(make_sink, tmp_path):
    """A torn last line is looked for before each write, not only on opening."""
    sink = make_sink(tmp_path / "a")
    write(sink, 1)
    with (tmp_path / "a").open("ab") as neighbour:
        neighbour.write(b'{"half":')
    write(sink, 1)
    lines = (tmp_path / "a").read_bytes().split(b"\n")
    assert [line[:8] for line in lines] == [lines[0][:8], b'{"half":', lines[0][:8], b""]


@pytest.mark.parametrize("how", ["rename", "unlink"])
def test_a_file_that_was_moved_or_deleted_is_made_anew(make_sink, tmp_path, how):
    """A file that was moved (as by logrotate's `create`) or deleted is created again."""
    path = tmp_path / "a"
    sink = make_sink(path)
    write(sink, 2)
    if how == "rename":
        path.rename(tmp_path / "a.1")
    else:
        path.unlink()
    write(sink, 3)
    assert len(path.read_bytes().splitlines()) == 3
    assert how == "unlink" or len((tmp_path / "a.1").read_bytes().splitlines()) == 2


def test_a_file_that_was_copied_and_truncated_is_filled_from_its_start(make_sink, tmp_path):
    """After logrotate's `copytruncate` a file is filled from its start, without zeros."""
    path = tmp_path / "a"
    sink = make_sink(path)
    write(sink, 2)
    os.truncate(path, 0)
    write(sink, 3)
    data = path.read_bytes()
    assert b"\0" not in data
    assert len(data.splitlines()) == 3


def test_a_neighbour_that_holds_the_lock_costs_the_timeout_and_no_more(make_sink, tmp_path):
    """With the lock held by a stopped process, records are kept at the timeout.

    They are written once the lock is free.
    """
    path = tmp_path / "a"
    with path.open("ab") as neighbour:
        fcntl.flock(neighbour, fcntl.LOCK_EX)
        sink = make_sink(path)
        records = records_of(sink, numbered_events(3))
        result = sink.write(records, 0.05)
        assert_partition(result, records)
        assert list(result.kept) == records
        assert result.error_type == "timeout"
    assert len(sink.write(records, 10).delivered) == 3


def test_a_thread_that_waits_too_long_keeps_its_records(make_sink, tmp_path):
    """A write whose time is over while another thread writes keeps all its records."""
    sink = make_sink(tmp_path / "a")
    records = records_of(sink, numbered_events(1))
    answers = []
    with (tmp_path / "a").open("ab") as neighbour:
        fcntl.flock(neighbour, fcntl.LOCK_EX)
        slow = threading.Thread(target=lambda: answers.append(sink.write(records, 10)))
        slow.start()
        while not sink._turn._thread:
            pass
        for _ in range(2):  # the first one leaves the turn to whoever has it
            result = sink.write(records, 0.01)
            assert list(result.kept) == records
            assert "another write is under way" in result.error
    slow.join()
    assert len(answers[0].delivered) == 1


def test_a_time_out_of_the_file_system_leaves_no_lock(make_sink, tmp_path, monkeypatch):
    """It may come once the file is locked, and other processes would wait for this one."""
    sink, neighbour = make_sink(tmp_path / "a"), make_sink(tmp_path / "a")
    write(sink, 1)

    def time_out(descriptor):
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", time_out)  # which is asked once the lock is taken
        assert write(sink, 1).kept
    assert len(neighbour.write(records_of(sink, numbered_events(1)), 0.1).delivered) == 1


class Interrupted:
    """A lock whose first acquisition is interrupted by a signal handler that raises."""

    def __init__(self, lock):
        self._lock = lock
        self._raised = False

    def acquire(self, timeout):
        taken = self._lock.acquire(timeout=timeout)
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt
        return taken

    def release(self):
        self._lock.release()


def test_what_interrupts_the_taking_of_a_turn_leaves_it_to_others(make_sink, tmp_path):
    """After an interrupted acquisition, the next write of any thread can take the lock."""
    sink = make_sink(tmp_path / "a")
    records = records_of(sink, numbered_events(1))
    sink._turn._lock = Interrupted(sink._turn._lock)
    with pytest.raises(KeyboardInterrupt):
        sink.write(records, 10)
    other = threading.Thread(target=sink.write, args=(records, 0.0))
    other.start()
    other.join()
    sink.write(records, 0.0)
    assert len((tmp_path / "a").read_bytes().splitlines()) == 2


@pytest.mark.parametrize(("fsync", "expected"), [("never", 0), ("interval", 3), ("batch", 8)])
def test_fsync_happens_as_often_as_asked(make_sink, tmp_path, monkeypatch, fsync, expected):
    """fsync is called never, once in an interval, or after each batch.

    Flush and close sync the rest.
    """
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_mode), real(fd)))
    now = [0.0]
    sink = make_sink(tmp_path / "a", fsync=fsync, fsync_interval_ms=1_000, monotonic=lambda: now[0])
    for _ in range(8):
        write(sink, 1)
        now[0] += 0.4  # due at 1.2 and 2.4 s
    sink.flush(10)
    sink.close(10)
    assert len([mode for mode in synced if stat.S_ISREG(mode)]) == expected
    # The folder is synced once, for the file's name.
    assert len([mode for mode in synced if stat.S_ISDIR(mode)]) == (fsync != "never")


def test_a_sync_that_fails_keeps_the_batch(make_sink, tmp_path, monkeypatch):
    """With fsync=batch, records whose sync fails are kept: they are not known to be on the disk."""
    sink = make_sink(tmp_path / "a", fsync="batch")
    write(sink, 1)

    def fail(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    result = write(sink, 2)
    assert len(result.kept) == 2
    assert result.error_type == "EIO"


def test_one_process_writes_where_there_is_nothing_of_posix(tmp_path):
    """Without fcntl, O_NOFOLLOW and other POSIX features, a file is written and rotated."""
    program = """
        import os, select, sys
        sys.modules["fcntl"] = None
        for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK", "fchmod", "fork",
                     "register_at_fork", "pread"):
            delattr(os, name)
        del select.poll
        from otel_cbtop_exporter.config import JsonLinesConfig
        from otel_cbtop_exporter.events import event_from_sample
        from otel_cbtop_exporter.sinks import append_file, rotation
        append_file._WINDOWS = rotation._WINDOWS = True
        from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink
        sink = JsonLinesSink(JsonLinesConfig(path=sys.argv[1], max_bytes=300))
        for number in range(5):
            records = sink.encode([event_from_sample("m", number)]).records
            result = sink.write(records, 10)
            assert len(result.delivered) == 1, result.error
        sink.close(30)
    """
    path = tmp_path / "a.jsonl"
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], check=True)
    assert path.stat().st_size <= 300
    assert list(tmp_path.glob("a.jsonl.*Z.gz"))


@pytest.mark.parametrize("how", ["moved", "closed", "forked"])
def test_no_descriptor_is_left_behind(make_sink, tmp_path, how):
    """No descriptor leaks when a file is moved or closed, or after a fork."""
    before = open_descriptors()
    sink = make_sink(tmp_path / "a", fsync="batch")
    write(sink)
    if how == "moved":
        (tmp_path / "a").rename(tmp_path / "a.1")
        write(sink)
    if how == "forked":
        sink.after_fork_in_child()
    else:
        sink.close(10)
    assert open_descriptors() == before


def test_a_file_that_became_a_fifo_keeps_the_records(make_sink, tmp_path):
    """If the file has become a FIFO the records are kept, because nobody may read it.

    No try leaks a descriptor.
    """
    sink = make_sink(tmp_path / "a")
    before = open_descriptors()
    write(sink)
    (tmp_path / "a").unlink()
    os.mkfifo(tmp_path / "a")
    for _ in range(2):
        result = write(sink)
        assert len(result.kept) == 3
        assert result.error.endswith("it is not a regular file any more")
    assert open_descriptors() == before


def test_where_there_are_no_locks_one_warning_says_so(make_sink, tmp_path, monkeypatch, caplog):
    """Without file locks, as on some network file systems, lines are written after one warning."""
    monkeypatch.setattr(append_file, "lock", lambda descriptor, deadline: False)
    sink = make_sink(tmp_path / "a")
    for _ in range(2):
        assert len(write(sink).delivered) == 3
    assert [r.getMessage() for r in caplog.records] == [
        f"jsonlines.path {tmp_path}/a: no flock: No locks available"
    ]


def test_where_a_mode_cannot_be_set_the_lines_are_written(make_sink, tmp_path, monkeypatch):
    """Lines are written even if the mode cannot be set, as on some file systems (FAT)."""

    def refuse(descriptor, mode):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    assert len(write(make_sink(tmp_path / "a")).delivered) == 3


def test_a_file_that_a_neighbour_makes_first_is_used(make_sink, tmp_path, monkeypatch):
    """A file that another process creates between our check and our creation is used."""
    real, calls = os.open, []

    def late(path, flags, mode=0o777, **options):
        calls.append(path)
        if len(calls) == 1:
            (tmp_path / "a").write_bytes(b"{}\n")
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return real(path, flags, mode, **options)

    sink = make_sink(tmp_path / "a")
    records = records_of(sink, numbered_events(3))
    with monkeypatch.context() as patched:
        patched.setattr(append_file.os, "open", late)
        assert len(sink.write(records, 10).delivered) == 3
    assert len((tmp_path / "a").read_bytes().splitlines()) == 4


def test_what_fits_on_a_full_disk_is_synced(make_sink, tmp_path, monkeypatch):
    """With fsync=batch, lines that fit on a full disk are synced before they are delivered."""
    sink = make_sink(tmp_path / "a", fsync="batch")
    write(sink, 1)
    synced = []
    short_writes(monkeypatch, 1_000)
    monkeypatch.setattr(os, "fsync", synced.append)
    result = write(sink, 10)
    assert 0 < len(result.delivered) < 10
    assert len(synced) == 1


def test_what_interrupts_a_write_leaves_no_lock(make_sink, tmp_path, monkeypatch):
    """A write interrupted by a signal handler releases the lock, or all others would stop."""
    sink, neighbour = make_sink(tmp_path / "a"), make_sink(tmp_path / "a")
    records = records_of(sink, numbered_events(1))

    def interrupt(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", interrupt)  # which is asked once the lock is taken
        with pytest.raises(KeyboardInterrupt):
            sink.write(records, 10)
    assert len(neighbour.write(records, 0.1).delivered) == 1


def test_a_sync_that_fails_at_the_end_is_told(make_sink, tmp_path, monkeypatch, caplog):
    """A sync that fails on close is logged, because nobody gets an answer then.

    The file is closed.
    """

    def fail(fd):
        raise OSError(errno.EIO, "Input/output error")

    before = open_descriptors()
    sink = make_sink(tmp_path / "a", fsync="interval", fsync_interval_ms=60_000)
    write(sink, 1)
    monkeypatch.setattr(os, "fsync", fail)
    sink.close(10)
    assert [r.getMessage() for r in caplog.records] == [
        f"jsonlines.path {tmp_path}/a: no fsync: Input/output error"
    ]
    assert open_descriptors() == before


def short_writes(monkeypatch, *sizes, then=None):
    """Let `os.write` take the given sizes, one per call, then fail as on a full disk."""
    real, left = os.write, list(sizes)

    def write_some(descriptor, data):
        if not left:
            if then is not None:
                then()
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: left.pop(0)])

    monkeypatch.setattr(append_file.os, "write", write_some)


def test_a_file_system_that_takes_a_batch_in_pieces(make_sink, tmp_path, monkeypatch):
    """After a short write, the rest of the batch is written."""
    sink = make_sink(tmp_path / "a")
    records = records_of(sink, numbered_events(5, size=500))
    with monkeypatch.context() as patched:
        short_writes(patched, *[700] * 100)
        assert sink.write(records, 10).delivered == records
    assert (tmp_path / "a").read_bytes().splitlines() == [record.body for record in records]


@pytest.mark.parametrize("sizes", [[], [1], [300], [1, 1_500]])
def test_a_disk_that_is_full_after_a_torn_line(make_sink, tmp_path, monkeypatch, sizes):
    """The newline that ends a killed process's torn line is not counted as a record."""
    (tmp_path / "a").write_bytes(b"{}\ntorn")
    sink = make_sink(tmp_path / "a")
    records = records_of(sink, numbered_events(5, size=500))
    with monkeypatch.context() as patched:
        short_writes(patched, *sizes)
        result = sink.write(records, 10)
    assert_partition(result, records)
    lines = (tmp_path / "a").read_bytes().splitlines()
    assert lines == [b"{}", b"torn", *(record.body for record in result.delivered)]
    assert sink.write(result.kept, 10).delivered == result.kept


def test_a_stranger_who_appends_without_the_lock_keeps_his_line(make_sink, tmp_path, monkeypatch):
    """An incomplete write is cut back only if nothing was appended after it."""
    path = tmp_path / "a"
    sink = make_sink(path)
    records = records_of(sink, numbered_events(5, size=500))

    def strange():
        with path.open("ab") as stranger:
            stranger.write(b"\nstrange\n")

    with monkeypatch.context() as patched:
        short_writes(patched, 700, then=strange)
        assert sink.write(records, 10).kept
    assert path.read_bytes().endswith(b"\nstrange\n")


def test_a_link_to_the_file_that_was_moved_is_not_followed(make_sink, tmp_path):
    """A link in place of the file is not followed, even if it points to the open file."""
    sink = make_sink(tmp_path / "a")
    write(sink)
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    assert write(sink).error_type == "ELOOP"
    assert len((tmp_path / "b").read_bytes().splitlines()) == 3


@pytest.mark.parametrize("how", ["moved", "locked"])
def test_what_was_written_is_synced_whatever_comes_between(make_sink, tmp_path, monkeypatch, how):
    """With fsync=interval, a flush also syncs a file that was moved or is locked by another."""
    path = tmp_path / "a"
    sink = make_sink(path, fsync="interval", fsync_interval_ms=60_000)
    write(sink, 1)
    inode, synced = path.stat().st_ino, []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    if how == "moved":
        path.rename(tmp_path / "a.1")
        write(sink, 1)
    else:
        with path.open("ab") as neighbour:
            fcntl.flock(neighbour, fcntl.LOCK_EX)
            assert sink.write(records_of(sink, numbered_events(1)), 0.01).kept
    assert sink.flush(10)
    assert inode in synced


def test_a_folder_that_cannot_be_synced_costs_no_line_and_no_descriptor(
    make_sink, tmp_path, monkeypatch, caplog
):
    """Where the file system cannot sync a folder, files are made, and one warning says so."""
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    before = open_descriptors()
    sink = make_sink(tmp_path / "a", fsync="batch")
    for _ in range(3):
        assert len(write(sink, 2).delivered) == 2
        (tmp_path / "a").unlink()
    sink.close(10)
    assert open_descriptors() == before
    assert caplog.text.count("no fsync of its folder: Invalid argument") == 1

"""Rotation by size and age, and the names, compression and removal of rotated files."""

import gzip
import os
import stat
import sys
import threading
from queue import SimpleQueue

import pytest

from otel_cbtop_exporter.config import JsonLinesConfig
from otel_cbtop_exporter.sinks import rotation
from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink
from otel_cbtop_exporter.sinks.rotation import RotatedFiles
from tests.descriptors import open_descriptors
from tests.sinks.conformance import numbered_events, records_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HOUR_NS = 3_600_000_000_000
# 2026-11-24 05:06:07 UTC
NOW_NS = 1_795_496_767_000_000_000


@pytest.fixture
def make_sink(tmp_path, monkeypatch):
    """Make sinks on one path, and close them at the end, when their work is done."""
    monkeypatch.setattr(rotation, "_PATIENCE_SECONDS", 60.0)
    sinks = []

    def make(**options):
        clocks = {n: options.pop(n) for n in ("time_ns", "monotonic") if n in options}
        sinks.append(JsonLinesSink(JsonLinesConfig(path=str(tmp_path / "a"), **options), **clocks))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close(120)


def write(sink, count=10, size=80):
    """Write about 2 kB."""
    records = records_of(sink, numbered_events(count, size=size))
    assert len(sink.write(records, 10).delivered) == count


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zst":
        data = zstd.decompress(data)
    return data


@pytest.mark.parametrize(
    ("compression", "suffix"), [("gzip", ".gz"), ("zstd", ".zst"), ("none", "")]
)
def test_a_full_file_is_renamed_and_compressed(make_sink, tmp_path, compression, suffix):
    """No file exceeds the limit, no line is lost, and only the newest file is not compressed."""
    sink = make_sink(max_bytes=5_000, compression=compression)
    for _ in range(6):
        write(sink)
    sink.close(120)
    files = sorted(tmp_path.iterdir())
    assert [path.name.endswith(f"Z{suffix}") for path in files] == [False, True, True]
    contents = [read(path) for path in files]
    assert all(0 < len(data) <= 5_000 for data in contents)
    assert sum(len(data.splitlines()) for data in contents) == 60


def test_a_compressed_file_has_the_mode_of_its_source(make_sink, tmp_path):
    """A compressed file keeps its source's mode, so that nobody else can read it."""
    sink = make_sink(max_bytes=2_000, mode="0604")
    write(sink)
    write(sink)
    sink.close(120)
    (rotated,) = tmp_path.glob("a.*.gz")
    assert rotated.stat().st_mode & 0o777 == 0o604


def test_a_batch_larger_than_the_limit_is_not_divided(make_sink, tmp_path):
    """A batch over the limit gets its own file; an empty file is never rotated."""
    sink = make_sink(max_bytes=100, compression="none")
    write(sink)
    assert names(tmp_path) == ["a"]
    write(sink)
    assert len(names(tmp_path)) == 2


def test_no_limit_means_no_rotation(make_sink, tmp_path):
    """With max_bytes=0 the file grows without limit."""
    sink = make_sink(max_bytes=0)
    for _ in range(5):
        write(sink)
    assert names(tmp_path) == ["a"]


def test_age_is_counted_in_windows(make_sink, tmp_path):
    """A file holds the lines of one time window; the first write in the next one rotates, once."""
    now = [NOW_NS]
    sink = make_sink(max_age_ms=3_600_000, compression="none", time_ns=lambda: now[0])

    def write_now():
        write(sink)
        os.utime(tmp_path / "a", ns=(now[0], now[0]))

    write_now()
    now[0] += HOUR_NS * 9 // 10 - 7 * 60 * 1_000_000_000  # 05:53
    write_now()
    assert names(tmp_path) == ["a"]
    now[0] += HOUR_NS // 4  # 06:08
    write_now()
    write_now()
    assert names(tmp_path) == ["a", "a.20261124T060807.000000Z"]
    assert len((tmp_path / "a").read_bytes().splitlines()) == 20


def test_age_is_known_after_a_restart(make_sink, tmp_path):
    """A new process rotates a file that was written in an earlier window."""
    write(make_sink())
    os.utime(tmp_path / "a", ns=(NOW_NS, NOW_NS))
    later = make_sink(max_age_ms=3_600_000, compression="none", time_ns=lambda: NOW_NS + HOUR_NS)
    write(later)
    assert len(names(tmp_path)) == 2


def test_a_file_system_whose_clock_is_behind_rotates_once(make_sink, tmp_path):
    """If a file server's clock is behind at the turn of the hour, the file is rotated only once."""
    now = [NOW_NS]
    sink = make_sink(max_age_ms=3_600_000, compression="none", time_ns=lambda: now[0])
    write(sink)
    now[0] += HOUR_NS
    for _ in range(4):
        os.utime(tmp_path / "a", ns=(NOW_NS, NOW_NS))
        write(sink)
    assert len(names(tmp_path)) == 2


def test_only_the_newest_files_stay(make_sink, tmp_path):
    """Only the newest max_files rotated files are kept, compressed or not."""
    now = [NOW_NS]
    sink = make_sink(max_bytes=2_000, max_files=2, time_ns=lambda: now[0])
    for _ in range(6):
        write(sink)
        now[0] += 1_000_000_000
    sink.close(120)
    assert names(tmp_path) == [
        "a",
        "a.20261124T050611.000000Z.gz",
        "a.20261124T050612.000000Z.gz",
    ]


def test_no_rotated_file_may_stay(make_sink, tmp_path):
    """With max_files=0 only the current file is kept."""
    sink = make_sink(max_bytes=2_000, max_files=0)
    for _ in range(3):
        write(sink)
    sink.close(120)
    assert names(tmp_path) == ["a"]


def test_strangers_are_left_alone(make_sink, tmp_path):
    """Files whose names only resemble rotated ones are neither counted nor deleted."""
    strangers = ["a.1", "a.gz", "a.20261124T050611.000000Z.bak", "b.20261124T050611.000000Z"]
    for name in strangers:
        (tmp_path / name).touch()
    sink = make_sink(max_bytes=2_000, max_files=0)
    write(sink)
    write(sink)
    sink.close(120)
    assert set(strangers) <= set(names(tmp_path))


def test_names_sort_by_age_though_the_clock_was_set_back(make_sink, tmp_path):
    """With the clock set back, later files still get later names, and no rename replaces a file."""
    now = [NOW_NS]
    sink = make_sink(max_bytes=2_000, compression="none", time_ns=lambda: now[0])
    for _ in range(4):
        write(sink)
        now[0] -= 10_000_000_000
    assert names(tmp_path)[1:] == [
        "a.20261124T050557.000000Z",
        "a.20261124T050557.000001Z",
        "a.20261124T050557.000002Z",
    ]


STAMP = "a.20261124T050607.000000Z"


def test_an_unfinished_compression_is_begun_again(make_sink, tmp_path):
    """After a crash during compression, the next process compresses the intact plain file."""
    (tmp_path / STAMP).write_bytes(b'{"old":1}\n')
    (tmp_path / f"{STAMP}.gz.tmp").write_bytes(b"half of")
    sink = make_sink()
    write(sink)
    sink.close(120)
    assert names(tmp_path) == ["a", f"{STAMP}.gz"]
    assert read(tmp_path / f"{STAMP}.gz") == b'{"old":1}\n'


def test_a_finished_compression_does_not_double_the_lines(make_sink, tmp_path):
    """After a crash between rename and deletion, the plain file is deleted."""
    (tmp_path / STAMP).write_bytes(b'{"old":1}\n')
    finished = gzip.compress(b'{"old":1}\n')
    (tmp_path / f"{STAMP}.gz").write_bytes(finished)
    sink = make_sink()
    write(sink)
    sink.close(120)
    assert names(tmp_path) == ["a", f"{STAMP}.gz"]
    assert (tmp_path / f"{STAMP}.gz").read_bytes() == finished


def test_an_orphan_of_a_compression_goes(make_sink, tmp_path):
    """A temporary file whose source is gone is deleted."""
    (tmp_path / f"{STAMP}.zst.tmp").write_bytes(b"half of")
    sink = make_sink()
    write(sink)
    sink.close(120)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("stamp", ["20261301T000000.000000Z", "99991231T235959.999999Z"])
def test_a_file_that_is_named_like_ours_and_has_no_time_is_left_alone(make_sink, tmp_path, stamp):
    """A file named like a rotated one, but with an unusable time, is left alone.

    Rotation goes on beside it.
    """
    (tmp_path / f"a.{stamp}").write_bytes(b"not ours")
    sink = make_sink(max_bytes=1_000, max_files=1, compression="none", time_ns=lambda: NOW_NS)
    for _ in range(3):
        write(sink)
    assert (tmp_path / f"a.{stamp}").read_bytes() == b"not ours"
    assert len(names(tmp_path)) >= 3


def test_a_file_that_cannot_be_compressed_costs_the_others_nothing(make_sink, tmp_path, caplog):
    """A folder named like a rotated file is reported, and the other files are compressed."""
    (tmp_path / "a.20260101T000000.000000Z").mkdir()
    sink = make_sink(max_bytes=1_000, time_ns=lambda: NOW_NS)
    write(sink)
    write(sink)
    sink.close(120)
    assert "a.20260101T000000.000000Z cannot be compressed" in caplog.text
    assert any(name.endswith(".gz") for name in names(tmp_path))


def test_two_sinks_do_not_compress_one_file_twice(make_sink, tmp_path, monkeypatch):
    """While one sink compresses a file, another leaves it alone."""
    (tmp_path / STAMP).write_bytes(b"x" * 1_000)
    inside, go_on, copies = threading.Event(), threading.Event(), []
    copy = rotation.RotatedFiles._copy

    def slow_copy(self, source, target):
        copies.append(self)
        inside.set()
        assert go_on.wait(10)
        return copy(self, source, target)

    monkeypatch.setattr(rotation.RotatedFiles, "_copy", slow_copy)
    first, second = make_sink(), make_sink()
    write(first)
    assert inside.wait(10)
    write(second)
    second.close(120)
    go_on.set()
    first.close(120)
    assert len(copies) == 1
    assert names(tmp_path) == ["a", f"{STAMP}.gz"]


def test_closing_does_not_wait_for_a_long_compression(make_sink, tmp_path, monkeypatch):
    """When the time is over, compression stops and leaves the plain file and no partial one."""
    monkeypatch.setattr(rotation, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(rotation, "_CHUNK_BYTES", 1)
    (tmp_path / STAMP).write_bytes(b"x" * 20_000_000)
    sink = make_sink()
    write(sink)
    sink.close(120)
    assert not [t for t in threading.enumerate() if t.name == "cbtop-rotation"]
    assert names(tmp_path) == ["a", STAMP]


def test_a_folder_that_forbids_renaming_costs_no_line(make_sink, tmp_path, monkeypatch, caplog):
    """If rotation is impossible the file grows, and one warning says so."""

    def forbidden(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.rename", forbidden)
    sink = make_sink(max_bytes=2_000)
    for _ in range(4):
        write(sink)
    assert len((tmp_path / "a").read_bytes().splitlines()) == 40
    assert [r.getMessage() for r in caplog.records] == [
        f"jsonlines.path {tmp_path}/a: no rotation: Operation not permitted"
    ]


def test_a_disk_too_full_to_compress_keeps_the_plain_file(make_sink, tmp_path, monkeypatch, caplog):
    """A failed compression keeps the plain file and leaves no partial one."""

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rotation, "_write_all", full)
    sink = make_sink(max_bytes=2_000)
    write(sink)
    write(sink)
    sink.close(120)
    assert [name.endswith("Z") for name in names(tmp_path)] == [False, True]
    assert "No space left on device" in caplog.text


def test_a_compression_that_is_stopped_leaves_the_plain_file(tmp_path):
    """A compression that is stopped keeps the plain file, for the next process to compress."""
    plain = tmp_path / "a.jsonl.20261124T000350.123456Z"
    plain.write_bytes(b"line\n" * 100_000)
    rotated = RotatedFiles(5, "gzip")
    rotated._stopping.set()  # as `close` does during a compression
    before = open_descriptors()
    rotated._compress(str(plain), ".gz")
    assert [path.name for path in tmp_path.iterdir()] == [plain.name]
    assert plain.stat().st_size == 500_000
    assert open_descriptors() == before


def test_a_file_is_synced_before_it_is_renamed(make_sink, monkeypatch):
    """With fsync=interval a file is synced before it is rotated.

    Nobody has it open at the next sync.
    """
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd)))
    sink = make_sink(
        max_bytes=2_000, compression="none", fsync="interval", fsync_interval_ms=60_000
    )
    write(sink)
    write(sink)
    assert [s.st_size > 0 for s in synced if stat.S_ISREG(s.st_mode)] == [True]


def test_a_folder_that_cannot_be_listed_costs_no_line(make_sink, monkeypatch, caplog):
    """A folder that can be written to but not listed costs no line."""

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    sink = make_sink()
    write(sink)
    sink.close(10)
    assert not caplog.records


def test_where_no_thread_starts_files_are_rotated(make_sink, tmp_path, no_threads):
    """If no thread can be started files are rotated, and the next process compresses them."""
    sink = make_sink(max_bytes=2_000)
    write(sink)
    write(sink)
    sink.close(10)
    assert [name.endswith("Z") for name in names(tmp_path)] == [False, True]


def test_a_forked_child_lets_go_of_what_is_compressed(tmp_path):
    """A forked child closes files being compressed.

    Its copies would keep a deleted file's space in use, and a killed parent's lock alive.
    """
    (tmp_path / STAMP).write_bytes(b"x")
    before = open_descriptors()
    rotated = RotatedFiles(5, "gzip")
    rotated._open(str(tmp_path / STAMP), os.O_RDONLY)
    rotated.after_fork_in_child()
    assert open_descriptors() == before


def test_a_file_that_cannot_be_deleted_costs_the_others_nothing(make_sink, tmp_path, caplog):
    """A folder named like an old rotated file is reported; others are deleted and compressed."""
    (tmp_path / "a.20260101T000000.000000Z").mkdir()
    (tmp_path / "a.20260102T000000.000000Z").write_text("{}\n")
    sink = make_sink(max_bytes=1_000, max_files=2, time_ns=lambda: NOW_NS)
    for _ in range(4):
        write(sink)
    sink.close(120)
    assert "a.20260101T000000.000000Z cannot be deleted" in caplog.text
    plain, folder, *rotated = names(tmp_path)
    assert (plain, folder) == ("a", "a.20260101T000000.000000Z")
    assert [name.endswith("Z.gz") for name in rotated] == [True, True]


def test_a_handler_that_closes_while_the_thread_starts_does_not_hang(tmp_path, monkeypatch):
    """A signal handler may close the sink on the thread that is starting the rotation thread."""
    sink = JsonLinesSink(JsonLinesConfig(path=str(tmp_path / "a"), max_bytes=1_000))
    real = threading.Thread.start

    def start(thread):
        if thread.name == "cbtop-rotation":
            sink._target._rotated.close(1.0)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    done = threading.Thread(target=lambda: [write(sink) for _ in range(2)], daemon=True)
    real(done)
    done.join(20)
    assert not done.is_alive()
    sink.close(120)


def test_a_thread_that_dies_is_followed_by_another(tmp_path, monkeypatch):
    """What a thread left undone because of an unexpected exception, the next one does."""
    died, errors, compressobj = SimpleQueue(), [MemoryError()], rotation.zlib.compressobj

    def without_memory_at_first(**options):
        if errors:
            raise errors.pop()
        return compressobj(**options)

    # Python's own way to learn of it. Memory does not run out on demand.
    monkeypatch.setattr(threading, "excepthook", lambda args: died.put(args.thread))
    monkeypatch.setattr(rotation.zlib, "compressobj", without_memory_at_first)
    (tmp_path / "a.20261124T000350.123456Z").write_bytes(b"x")
    files = RotatedFiles(5, "gzip")
    files.tidy(str(tmp_path / "a"))
    died.get(timeout=60).join()
    files.tidy(str(tmp_path / "a"))
    files.close(120)
    assert names(tmp_path) == ["a.20261124T000350.123456Z.gz"]

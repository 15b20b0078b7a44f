import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from otel_cbtop_exporter.cli.app import app
from otel_cbtop_exporter.delivery.spool_rows import MIGRATIONS
from otel_cbtop_exporter.sinks.base import Record
from tests.delivery.spools import make_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from otel_cbtop_exporter.sinks.base import Record
from tests.delivery.spools import make_folder
folder = make_folder(Path(sys.argv[1]))
folder.append([Record(b'{"n": %d}' % n, lane="spans") for n in range(3)])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(app, ["spool", *map(str, arguments)])


def leave(path, *bodies, lane="spans", destination="somewhere"):
    """Leave records as a process that has ended does; return the destination's folder."""
    folder = make_folder(path, destination=destination, time_ns=lambda: 1_700_000_000 * 10**9)
    folder.append([Record(body, lane=lane) for body in bodies])
    folder.close()
    return folder.folder


def contents(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_an_empty_folder_has_nothing_to_tell(tmp_path, run):
    """A folder in which nothing waits is reported in one line."""
    result = run("list", tmp_path)
    assert (result.exit_code, result.output) == (0, "nothing waits\n")


def test_what_waits_is_listed_by_destination_and_process(tmp_path, run):
    """`list` shows events, bytes and age for each destination and process that made a file.

    The figures of a live process are current, whatever it last reported itself.
    """
    left = leave(tmp_path, b"1", b"2")
    live = make_folder(tmp_path, destination="elsewhere")
    live.append([Record(b"3")])
    result = run("list", tmp_path)
    claim = live.spools()[0].claim("", 10, 1_000)
    claim.spool.settle(claim)
    later = run("list", tmp_path)
    live.close()
    assert (result.exit_code, later.exit_code) == (0, 0)
    rows = {row.split()[0]: row.split()[2:] for row in result.output.splitlines()}
    assert rows["destination"] == ["made", "by", "state", "events", "bytes", "oldest"]
    dead = rows[left.name]
    assert dead[:3] == [str(os.getpid()), "left", "2"]
    assert int(dead[3]) > 100
    assert dead[4] == "2023-11-14T22:13:20.000Z"
    assert rows[live.folder.name][:3] == [str(os.getpid()), "held", "1"]
    rows = {row.split()[0]: row.split()[2:] for row in later.output.splitlines()}
    assert rows[live.folder.name][:4] == [str(os.getpid()), "held", "0", "0"]
    assert run("list", left).output.splitlines()[1].split()[2:5] == dead[:3]
    assert result.output.splitlines()[3:] == [
        f"for {destination}: {folder.name}"
        for folder, destination in sorted([(left, "somewhere"), (live.folder, "elsewhere")])
    ]


def test_what_is_set_aside_is_named(tmp_path, run):
    """`list` names dead letters and damaged files, which nobody will send."""
    left = leave(tmp_path, b"1")
    (tmp_path / "dead-letters.jsonl").write_text("{}\n")
    (left / "x.db.damaged-17").write_bytes(b"")
    (left / "x.db.damaged-17-wal").write_bytes(b"")
    lines = run("list", tmp_path).output.splitlines()[2:]
    assert lines == [
        f"refused for good: {tmp_path / 'dead-letters.jsonl'}",
        f"damaged, set aside: {left / 'x.db.damaged-17'}",
        f"for somewhere: {left.name}",
    ]


LOCKED = """
import os, shutil, tempfile
from pathlib import Path
from click.testing import CliRunner
from otel_cbtop_exporter.cli.app import app
from tests.cli.test_spool import leave
if os.geteuid() == 0:  # nothing is locked for root
    os.setgroups([])
    os.setgid(65_534)
    os.setuid(65_534)
path = Path(tempfile.mkdtemp())
leave(path, b"1")
locked = leave(path, b"2", destination="locked")
locked.chmod(0)
try:
    listed = CliRunner().invoke(app, ["spool", "list", str(path)])
    exported = CliRunner().invoke(app, ["spool", "export", str(path)])
finally:
    locked.chmod(0o700)
    shutil.rmtree(path)
assert (listed.exit_code, exported.exit_code) == (1, 1), (listed.output, exported.output)
assert f"{locked.name}: [Errno 13] Permission denied" in listed.output, listed.output
assert f"{locked.name} cannot be read: " in exported.stderr, exported.stderr
assert exported.stdout == "1\\n", exported.stdout
"""


def test_a_destination_that_cannot_be_read_hides_no_other():
    """An unreadable destination is reported with status 1; the others are listed and exported."""
    subprocess.run([sys.executable, "-c", LOCKED], check=True, timeout=60)


def test_other_files_in_the_folder_are_not_ours(tmp_path, run):
    """A database of the application in the folder is neither opened, locked nor listed."""
    left = leave(tmp_path, b"1")
    (tmp_path / "app.db").write_bytes(b"mine")
    result = run("list", tmp_path)
    assert result.exit_code == 0
    assert [row.split()[0] for row in result.output.splitlines()[1:]] == [left.name, "for"]
    assert not list(tmp_path.glob("app*.lock"))


def test_a_destination_that_is_not_there_is_an_error(tmp_path, run):
    """An unknown destination is an error, or a misspelt name would look like an empty one."""
    left = leave(tmp_path, b"1")
    result = run("export", tmp_path, "--destination", "typo")
    assert result.exit_code == 1
    assert f"nothing waits for typo; destinations are {left.name}" in result.output


def test_listing_changes_nothing(tmp_path, run):
    """`list` changes no byte, even of a file that a killed process left with its WAL."""
    leave(tmp_path, b"1")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("*/*.db-wal"))
    before = {path: data for path, data in contents(tmp_path).items() if path.suffix != ".db-shm"}
    result = run("list", tmp_path)
    after = {path: data for path, data in contents(tmp_path).items() if path.suffix != ".db-shm"}
    assert after == before
    assert [row.split()[4] for row in result.output.splitlines()[1:3]] == ["1", "3"]


def test_what_waits_is_exported_as_it_would_have_been_sent(tmp_path, run):
    """`export` prints one record a line, oldest first, and removes nothing by default."""
    leave(tmp_path, b'{"n": 1}', b'{"n": 2}')
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    for _ in range(2):
        result = run("export", tmp_path)
        assert result.exit_code == 0
        assert [json.loads(line)["n"] for line in result.stdout.splitlines()] == [1, 2, 0, 1, 2]
        assert result.stderr.count(" events") == 2


def test_one_destination_or_lane_can_be_exported_alone(tmp_path, run):
    """`export` can select a destination as shown by `list`, or a lane by its bucket or topic."""
    leave(tmp_path, b"1", lane="spans")
    leave(tmp_path, b"2", lane="logs")
    other = leave(tmp_path, b"3", destination="elsewhere")
    assert run("export", tmp_path, "--destination", other.name).stdout == "3\n"
    assert run("export", tmp_path, "--lane", "logs").stdout == "2\n"
    result = run("export", tmp_path, "--lane", "lags")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing waits for lags; buckets or topics are logs, spans" in result.stderr


def test_a_file_of_which_something_was_passed_over_stays(tmp_path, run):
    """With --lane and --delete, a file is removed only if all its records were exported."""
    mixed = make_folder(tmp_path)
    mixed.append([Record(b"1", lane="logs"), Record(b"2", lane="spans")])
    mixed.close()
    leave(tmp_path, b"3", lane="logs")
    result = run("export", tmp_path, "--lane", "logs", "--delete")
    assert (result.exit_code, result.stdout) == (0, "1\n3\n")
    assert result.stderr.count("it stays, because of the others in it") == 1
    assert len(list(tmp_path.glob("*/*.db"))) == 1
    assert run("export", tmp_path).stdout == "1\n2\n"


def test_what_belongs_to_several_is_not_removed_into_one_stream(tmp_path, run):
    """--delete refuses to export several destinations at once.

    Nobody could tell afterwards which lines belong to which.
    """
    first = leave(tmp_path, b"1", lane="spans")
    leave(tmp_path, b"2", destination="elsewhere")
    assert run("export", tmp_path, "--delete").exit_code == 2
    result = run("export", tmp_path, "--delete", "--destination", first.name)
    assert (result.exit_code, result.stdout) == (0, "1\n")
    assert "1 event of spans" in result.stderr


def test_what_was_exported_is_removed_when_that_is_asked_for(tmp_path, run):
    """--delete removes exported files with their companions, but no other destination's."""
    gone = leave(tmp_path, b"1")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    other = leave(tmp_path, b"3", destination="elsewhere")
    result = run("export", tmp_path, "--destination", gone.name, "--delete")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 4)
    assert list(gone.iterdir()) == []
    assert len(list(other.glob("*.db"))) == 1


def test_what_a_live_process_holds_is_left_to_it(tmp_path, run):
    """`export` leaves a live process's events alone, because it delivers them itself."""
    live = make_folder(tmp_path)
    live.append([Record(b"1")])
    result = run("export", tmp_path, "--delete")
    assert (result.exit_code, result.stdout) == (0, "")
    assert live.stats().events_spooled == 1
    live.close()


@pytest.mark.parametrize("how", ["row", "file"])
def test_what_cannot_be_read_stays_and_is_told(tmp_path, run, how):
    """A damaged file is kept and reported with status 1; the other files are exported."""
    at = leave(tmp_path, b"1" * 50)
    (file,) = at.glob("*.db")
    data = bytearray(file.read_bytes())
    if how == "file":
        data[:16] = b"no database here"
    else:
        start = data.index((0xFD2FB528).to_bytes(4, "little"))  # the magic number of zstd
        data[start + 12] ^= 0xFF
    file.write_bytes(data)
    leave(tmp_path, b"2")
    result = run("export", tmp_path, "--delete")
    assert result.exit_code == 1
    assert result.stdout == "2\n"
    assert f"{file.stem} stays where it is: " in result.stderr
    assert [path.read_bytes() for path in at.glob("*.db")] == [bytes(data)]


def test_a_file_of_a_later_version_is_listed_or_told(tmp_path, run):
    """Listing does not change a file that a later version of the package wrote."""
    at = leave(tmp_path, b"1")
    (file,) = at.glob("*.db")
    data = bytearray(file.read_bytes())
    data[60:64] = (len(MIGRATIONS) + 1).to_bytes(4, "big")  # user_version
    file.write_bytes(data)
    assert run("list", tmp_path).exit_code == 0
    assert file.read_bytes() == bytes(data)

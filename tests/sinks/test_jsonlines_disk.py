"""A full disk: no partial line remains, and what did not fit is kept."""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest

# Writes batches of 10 lines of about 1 KB until one is not taken whole, tries the rest again, makes
# room, writes the kept ones, and prints the results.
PROGRAM = textwrap.dedent(
    """
    import json, os, resource, sys
    from otel_cbtop_exporter.config import JsonLinesConfig
    from otel_cbtop_exporter.sinks.jsonlines import JsonLinesSink
    from tests.sinks.conformance import assert_partition, numbered_events, records_of

    folder, limit = sys.argv[1], int(sys.argv[2])
    path = os.path.join(folder, "a.jsonl")
    filler = os.path.join(folder, "filler")
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    else:
        with open(filler, "wb") as file:
            file.write(b"x" * 50_000)
    sink = JsonLinesSink(JsonLinesConfig(path=path, max_bytes=0))
    records = records_of(sink, numbered_events(1_000, size=1_000))
    delivered = 0
    while True:
        batch = records[delivered : delivered + 10]
        result = sink.write(batch, 10)
        assert_partition(result, batch)
        assert list(result.delivered) + list(result.kept) == batch, "order"
        delivered += len(result.delivered)
        if result.kept:
            break
    with open(path, "rb") as file:
        data = file.read()
    again = sink.write(result.kept, 10)  # still full: nothing may be torn or lost
    with open(path, "rb") as file:
        unchanged = file.read() == data
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    else:
        os.unlink(filler)
    last = sink.write(result.kept, 10)
    sink.close(10)
    with open(path, "rb") as file:
        lines = file.read().splitlines()
    print(json.dumps({
        "error_type": result.error_type, "error": result.error, "delivered": delivered,
        "lines_when_full": data.count(b"\\n"), "whole": data.endswith(b"\\n"),
        "nothing_more": not again.delivered, "unchanged": unchanged,
        "kept": len(result.kept), "delivered_at_last": len(last.delivered),
        "all_once_in_order": lines == [r.body for r in records[: delivered + len(result.kept)]],
    }))
    """
)


def check(answer):
    assert answer["whole"]
    assert answer["lines_when_full"] == answer["delivered"]
    assert answer["nothing_more"]
    assert answer["unchanged"]
    assert answer["kept"] == answer["delivered_at_last"]
    assert answer["all_once_in_order"]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("limit", [100_000, 99_999, 123_457])
def test_a_file_at_its_limit_ends_in_a_whole_line(tmp_path, limit):
    """At a file size limit a short write is cut back to its last whole line; the rest is kept."""
    answer = run(sys.executable, "-c", PROGRAM, str(tmp_path), str(limit))
    check(answer)
    assert answer["error_type"] == "EFBIG"
    assert answer["error"].endswith("cannot be written: File too large")
    assert answer["delivered"] > 50


def test_a_full_disk_ends_in_a_whole_line(tmp_path):
    """A full file system of 256 KiB ends in a whole line.

    A file size limit is used where none can be mounted.
    """
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    script = 'mount -t tmpfs -o size=256k none "$1"; shift; exec "$@"'
    if (
        shutil.which("unshare")
        and not subprocess.run(
            [*mount, script, "sh", str(tmp_path), "true"], capture_output=True, check=False
        ).returncode
    ):
        program = [sys.executable, "-c", PROGRAM, str(tmp_path), "0"]
        answer = run(*mount, script, "sh", str(tmp_path), *program)
        assert answer["error_type"] == "ENOSPC"
        assert answer["error"].endswith("cannot be written: No space left on device")
    else:
        answer = run(sys.executable, "-c", PROGRAM, str(tmp_path), "200000")
    check(answer)

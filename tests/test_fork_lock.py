"""A fork in the middle of an import: of a client library, or of a spool's modules."""

import os
import signal
import subprocess
import sys

import pytest

# The module says that its import has begun, and ends it when it is told to.
SLOW_CLIENT = """
import main_thread
main_thread.begun.set()
main_thread.may_end.wait()
"""

PRELUDE = """
import os, signal, sys, threading, types

main_thread = sys.modules["main_thread"] = types.ModuleType("main_thread")
main_thread.begun, main_thread.may_end = threading.Event(), threading.Event()
"""

FIRST_WRITE = """
from otel_cbtop_exporter.fork_lock import forks_wait

def begin():
    with forks_wait():
        import slow_client
"""

# Python asks this finder while it holds the lock of the module.
FIRST_SPOOL = """
from importlib.abc import MetaPathFinder
from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.pipeline import Pipeline
from otel_cbtop_exporter.testing import RecordingSink

class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "otel_cbtop_exporter.delivery.backlog":
            import slow_client

sys.meta_path.insert(0, Slow())

def begin():
    Pipeline(RecordingSink(), ExporterConfig()).release(5)
"""

# The import goes on in a thread; the fork comes in the middle of it.
SCRIPT = """
thread = threading.Thread(target=begin)
thread.start()
main_thread.begun.wait()
threading.Timer(0.1, main_thread.may_end.set).start()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    main_thread.may_end.set()
    begin()
    os._exit(0)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("begin", [FIRST_WRITE, FIRST_SPOOL], ids=["write", "spool"])
def test_a_fork_waits_for_an_import(tmp_path, begin):
    """The child can import what its parent imports: nobody has left it locked for ever."""
    (tmp_path / "slow_client.py").write_text(SLOW_CLIENT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + begin + SCRIPT],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != -signal.SIGALRM, "the child hangs"
    assert done.returncode == 0, done.stderr

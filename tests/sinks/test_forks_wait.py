"""A fork in the middle of an import of a client library."""

import os
import signal
import subprocess
import sys

# The module says that its import has begun, and ends it when it is told to.
SLOW_CLIENT = """
import main_thread
main_thread.begun.set()
main_thread.may_end.wait()
"""

# The import goes on in a thread, as with the first write; the fork comes in the middle of it.
SCRIPT = """
import os, signal, sys, threading, types
from otel_cbtop_exporter.sinks.base import forks_wait

main_thread = sys.modules["main_thread"] = types.ModuleType("main_thread")
main_thread.begun, main_thread.may_end = threading.Event(), threading.Event()

def first_write():
    with forks_wait():
        import slow_client

thread = threading.Thread(target=first_write)
thread.start()
main_thread.begun.wait()
threading.Timer(0.1, main_thread.may_end.set).start()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    main_thread.may_end.set()
    first_write()
    os._exit(0)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_fork_waits_for_an_import(tmp_path):
    """The child can import the library, too: nobody has left it locked for ever."""
    (tmp_path / "slow_client.py").write_text(SLOW_CLIENT)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != -signal.SIGALRM, "the child hangs"
    assert done.returncode == 0, done.stderr

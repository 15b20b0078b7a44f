"""FastAPI under uvicorn, ended by SIGTERM, on which Python exits without cleaning up."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import requests

from tests.e2e.processes import INSTRUMENTED, events_in, free_port, running, server_spans

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# Nothing is exported before the end, so that the end is what is tested.
AT_THE_END = {
    **INSTRUMENTED,
    "OTEL_BSP_SCHEDULE_DELAY": "60000",
    "OTEL_METRIC_EXPORT_INTERVAL": "60000",
}


@pytest.fixture
def folder(tmp_path):
    shutil.copy(HERE / "shop_asgi.py", tmp_path)
    return tmp_path


def uvicorn(port, workers):
    return ["uvicorn", "--port", str(port), "--workers", str(workers), "shop_asgi:app"]


def gunicorn(port, workers):
    address = ["--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
    return ["gunicorn", *address, "-k", "uvicorn.workers.UvicornWorker", "shop_asgi:app"]


def driven(folder, workers, server=uvicorn, **environment):
    """Send requests, end the server by SIGTERM, and return the exit status and the paths sent."""
    port = free_port()
    command = server(port, workers)
    paths = [f"/orders/{number}" for number in range(40)]
    with running(command, folder, port=port, **AT_THE_END, **environment) as application:
        for path in paths:
            requests.get(application.url + path, timeout=30)
        status = application.end(signal.SIGTERM)
    return status, paths


@pytest.mark.parametrize("workers", [1, 2])
def test_with_exit_on_sigterm_nothing_is_lost(folder, workers):
    """With exit_on_sigterm the SDK's queue is exported, although uvicorn raises SIGTERM again."""
    _, paths = driven(folder, workers, OTEL_EXPORTER_CBTOP_EXIT_ON_SIGTERM="true")
    assert server_spans(events_in(folder), "url.path") == sorted(paths)


def test_without_it_what_was_exported_is_whole_and_the_queue_is_lost(folder):
    """Without it uvicorn dies of SIGTERM and the SDK's queue is lost, as documented."""
    status, _ = driven(folder, 1)
    assert status == -signal.SIGTERM
    assert server_spans(events_in(folder)) == []


def test_under_gunicorn_the_worker_needs_a_hook(folder):
    """With the documented hook, gunicorn's uvicorn worker exports everything.

    The worker undoes a signal handler that was installed before it.
    """
    documented = (ROOT / "docs" / "operations.md").read_text()
    (hook,) = re.findall(r"```python\n(# gunicorn\.conf\.py\n.*?)```", documented, re.DOTALL)
    (folder / "gunicorn.conf.py").write_text(hook)
    _, paths = driven(folder, 2, gunicorn)
    assert server_spans(events_in(folder), "url.path") == sorted(paths)

"""FastAPI under uvicorn, ended by SIGTERM, which Python does not survive by itself."""

import shutil
import signal
from pathlib import Path

import pytest
import requests

from tests.e2e.processes import INSTRUMENTED, events_in, free_port, running, server_spans

HERE = Path(__file__).parent

# Nothing leaves before the end, so that the end is what is tested.
AT_THE_END = {
    **INSTRUMENTED,
    "OTEL_BSP_SCHEDULE_DELAY": "60000",
    "OTEL_METRIC_EXPORT_INTERVAL": "60000",
}


@pytest.fixture
def folder(tmp_path):
    shutil.copy(HERE / "shop_asgi.py", tmp_path)
    return tmp_path


def driven(folder, workers, **environment):
    """Send requests, end the server by SIGTERM, and return the exit status and the paths sent."""
    port = free_port()
    command = ["uvicorn", "--port", str(port), "--workers", str(workers), "shop_asgi:app"]
    paths = [f"/orders/{number}" for number in range(40)]
    with running(command, folder, port=port, **AT_THE_END, **environment) as application:
        for path in paths:
            requests.get(application.url + path, timeout=30)
        status = application.end(signal.SIGTERM)
    return status, paths


@pytest.mark.parametrize("workers", [1, 2])
def test_with_exit_on_sigterm_nothing_is_lost(folder, workers):
    """The SDK's queue is exported although uvicorn raises SIGTERM again."""
    _, paths = driven(folder, workers, OTEL_EXPORTER_CBTOP_EXIT_ON_SIGTERM="true")
    assert server_spans(events_in(folder), "url.path") == sorted(paths)


def test_without_it_what_was_exported_is_whole_and_the_queue_is_lost(folder):
    """What the documentation says: uvicorn dies of SIGTERM, and the SDK's queue with it."""
    status, _ = driven(folder, 1)
    assert status == -signal.SIGTERM
    assert server_spans(events_in(folder)) == []

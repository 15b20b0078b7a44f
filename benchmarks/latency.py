"""What the application's users see: the latency of a Flask application under a steady load.

Each exporter has a gunicorn, and all run at once; the load goes to one after the other, for
several rounds. A request's time counts from when the request was due, so that it includes
waiting behind another request.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Report, Scale, figure
from benchmarks.processes import ROOT, environment, folder, receiver
from tests.servers.influxdb import InfluxDB
from tests.servers.kafka_broker import start_broker

_RATE = 100
_CONNECTIONS = 4
_NAMES = {
    "none": "no exporter",
    "otlp": "OTLPSpanExporter (HTTP) to a local receiver",
    "jsonlines": "ours, JSON Lines",
    "influxdb": "ours, spool on disk and InfluxDB",
    "kafka": "ours, Kafka",
}


def run(scale: Scale) -> Report:
    rounds, requests = scale.of(6, 1), scale.of(500, 40)
    seconds: dict[str, list[float]] = {name: [] for name in _NAMES}
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        otlp = stack.enter_context(receiver())
        broker = stack.enter_context(start_broker(path / "broker"))
        server = InfluxDB.start(path / "influxdb", 2)
        stack.callback(server.close)
        server.new_bucket("bench")
        env = {**environment(), "INFLUXDB_V2_TOKEN": server.token, "INFLUXDB_V2_ORG": server.org}
        urls = {"influxdb": server.url, "kafka": broker.bootstrap}
        ports = {
            name: stack.enter_context(_gunicorn(name, urls.get(name, otlp.url), path, env))
            for name in _NAMES
        }
        for name in _NAMES:
            _load(ports[name], requests // 4)  # connections, imports of clients
        for _ in range(rounds):
            for name, port in ports.items():
                seconds[name] += _load(port, requests)
    table = [["exporter", "p50", "p90", "p99", "p99.9"]]
    for name, all_ in seconds.items():
        cuts = statistics.quantiles(all_, n=1_000, method="inclusive")
        chosen = (cuts[499], cuts[899], cuts[989], cuts[998])
        table.append([_NAMES[name], *(f"{figure(cut * 1e3)} ms" for cut in chosen)])
    return Report(
        "The application's own view: latency of a Flask application",
        table=table,
        notes=[
            (
                f"{rounds * requests:,} requests to each, {_RATE} a second over {_CONNECTIONS} "
                "connections, five spans a request."
            )
        ],
    )


@contextlib.contextmanager
def _gunicorn(name: str, url: str, path: Path, env: dict[str, str]) -> Iterator[int]:
    """Serve the application in a separate process; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--workers=1", "--threads=4"),
                *("--log-level=warning", f"--bind=fd://{listener.fileno()}"),
                f"benchmarks.programs.flask_app:make_app({name!r}, {url!r}, {str(path / name)!r})",
            ],
            cwd=ROOT,
            env=env,
            pass_fds=[listener.fileno()],
        )
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def _load(port: int, requests: int) -> list[float]:
    """Make requests at a steady rate; return how long each took, counted from when it was due."""
    taken: list[float] = []
    begin = time.perf_counter() + 0.05

    def ask(connection_number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for number in range(connection_number, requests, _CONNECTIONS):
            due = begin + number / _RATE
            if (early := due - time.perf_counter()) > 0:
                time.sleep(early)
            connection.request("GET", f"/cart/{number}")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            taken.append(time.perf_counter() - due)
        connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == requests
    return taken

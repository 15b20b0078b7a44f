"""What `make demo` runs: the shop under opentelemetry-instrument, requests, and a summary.

The shop's own source has no telemetry code; `ENVIRONMENT` below is all that it takes. What you
set in the environment takes precedence, for example OTEL_EXPORTER_CBTOP_SINK=influxdb.
"""

import argparse
import contextlib
import itertools
import os
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
FOLDER = Path(".demo")
SINK = "OTEL_EXPORTER_CBTOP_SINK"
FILE = "OTEL_EXPORTER_CBTOP_JSONLINES_PATH"

ENVIRONMENT = {
    "OTEL_SERVICE_NAME": "shop",
    "OTEL_TRACES_EXPORTER": "cbtop",
    "OTEL_METRICS_EXPORTER": "cbtop",
    "OTEL_LOGS_EXPORTER": "cbtop",
    FILE: str(FOLDER / "events.jsonl"),
    "OTEL_EXPORTER_CBTOP_EXIT_ON_SIGTERM": "true",
    "OTEL_METRIC_EXPORT_INTERVAL": "2000",
    # Use the stable HTTP semantic conventions, which include http.route on metrics.
    "OTEL_SEMCONV_STABILITY_OPT_IN": "http",
}

# Most people look at the home page, some order, and one page has a bug.
PATHS = ("/", "/orders/7", "/", "/orders/8", "/report", "/", "/orders/9", "/fail")
WORKERS = 4
PAUSE_SECONDS = 0.05
PATIENCE_SECONDS = 30

console = Console(highlight=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="of requests (default 10)")
    seconds = parser.parse_args().seconds

    FOLDER.mkdir(exist_ok=True)
    environment = {**ENVIRONMENT, **os.environ}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment.get('PATH', '')}"
    sinks = [name.strip() for name in environment.get(SINK, "jsonlines").split(",")]
    # The summary is read from the file, so the file gets every event too.
    environment[SINK] = ",".join(dict.fromkeys([*sinks, "jsonlines"]))
    if environment[FILE] == ENVIRONMENT[FILE]:
        for old in FOLDER.glob("events.jsonl*"):
            old.unlink()

    with run_shop(environment) as (host, port):
        url = f"http://{host}:{port}"
        sent = drive(url, seconds)
    shown = ", ".join(f"{count} x {path}" for path, count in sorted(sent.items()))
    console.print(f"{sent.total()} requests sent: {shown}")
    complaints = show_complaints()
    for name in sinks:
        if name != "jsonlines":
            is_told = any(f"sink {name}" in line for line in complaints)
            what = "were meant for" if is_told else "went to"
            console.print(f"the same events {what} [bold]{name}[/bold]{destination(environment)}")

    file = environment[FILE]
    run("otel-cbtop", "summary", "--follow-trace", file, environment=environment)
    console.print(f"\nThe events are in [bold]{file}[/bold], one JSON object a line.")
    console.print("Try next:")
    for arguments in (f"summary --all {file}", f"tail -n 20 {file}", "config"):
        console.print(f"  {BIN / 'otel-cbtop'} {arguments}", soft_wrap=True)


@contextlib.contextmanager
def run_shop(environment):
    """Run the shop while the block runs, then end it as a supervisor would: with SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    command = ["opentelemetry-instrument", "flask", "--app", str(HERE / "app.py"), "run"]
    command += ["--port", str(address[1])]
    for name in ENVIRONMENT:
        console.print(f"export {name}={shlex.quote(environment[name])}", style="dim")
    console.print("$ " + shlex.join(command), style="bold", soft_wrap=True)
    with log_path().open("w") as log:
        shop = subprocess.Popen(
            [BIN / command[0], *command[1:]], env=environment, stdout=log, stderr=log
        )
        try:
            wait_until_up(shop, address)
            yield address
        finally:
            shop.terminate()
            try:
                shop.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                shop.kill()
                shop.wait()


def wait_until_up(shop, address):
    # Connect without a request, so that only the requests of `drive` are counted.
    deadline = time.monotonic() + PATIENCE_SECONDS
    while shop.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            return
        time.sleep(0.1)
    sys.exit(f"the shop did not start:\n{log_path().read_text()}")


def drive(url, seconds):
    """Send requests for some seconds, and count them by path."""
    sent = Counter()
    paths = itertools.cycle(PATHS)
    columns = TextColumn("driving requests"), BarColumn(), TimeRemainingColumn()
    with (
        Progress(*columns, TextColumn("{task.fields[sent]} sent"), console=console) as progress,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        task = progress.add_task("", total=seconds, sent=0)
        start = time.monotonic()
        while (passed := time.monotonic() - start) < seconds:
            batch = list(itertools.islice(paths, WORKERS))
            for path in pool.map(lambda path: get(url, path), batch):
                sent[path] += 1
            progress.update(task, completed=passed, sent=sent.total())
            time.sleep(PAUSE_SECONDS)
        progress.update(task, completed=seconds)
    return sent


def get(url, path):
    requests.get(url + path, timeout=10)
    return path


def destination(environment):
    known = (
        "OTEL_EXPORTER_CBTOP_INFLUXDB_URL",
        "INFLUXDB_V2_URL",
        "OTEL_EXPORTER_CBTOP_INFLUXDB_BUCKET",
        "OTEL_EXPORTER_CBTOP_KAFKA_BOOTSTRAP_SERVERS",
        "OTEL_EXPORTER_CBTOP_KAFKA_TOPIC",
    )
    given = [f"{name}={environment[name]}" for name in known if name in environment]
    return f" ({', '.join(given)})" if given else ""


def show_complaints():
    """Show what the exporter logged, and return it; the shop's own log stays in its file."""
    lines = log_path().read_text().splitlines()
    complaints = [line for line in lines if "otel_cbtop_exporter" in line]
    for line in complaints:
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    return complaints


def log_path():
    return FOLDER / "shop.log"


def run(*command, environment):
    console.print("\n$ " + shlex.join(command), style="bold", soft_wrap=True)
    subprocess.run([BIN / command[0], *command[1:]], env=environment, check=True)


if __name__ == "__main__":
    main()

"""Other processes: programs in fresh interpreters, and a receiver."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """Return this process's environment without variables that configure exporters or Python."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "PYTHON", "INFLUXDB_"))
    }


def run_program(name: str, *arguments: object, env: dict[str, str] | None = None) -> Any:
    """Run `python -m benchmarks.programs.NAME` and return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.programs.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=env or environment(),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def apart(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a module's function in a fresh process, unaffected by what ran before.

    After other benchmarks free memory is fragmented, and new spans lie far apart in it: mapping
    them took half as long again, OTLP's encoding a tenth longer.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()


class Receiver:
    """A local receiver in a separate process, which only answers."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.otlp_traces = f"{self.url}/v1/traces"

    def posted_bytes(self) -> int:
        with urllib.request.urlopen(self.url) as answer:
            return int(answer.read())


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a receiver while the block runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.programs.receiver"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Receiver(int(process.stdout.readline()))
        process.stdin.close()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Make a temporary folder for what a benchmark writes."""
    with tempfile.TemporaryDirectory(prefix="cbtop-bench-") as path:
        yield Path(path)

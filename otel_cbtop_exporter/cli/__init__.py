"""The console command `otel-cbtop`. It needs the extra `cli`; the exporters do not."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys

__all__ = ["main"]


def main() -> None:
    """Run `otel-cbtop`, or say what to install for it."""
    if importlib.util.find_spec("click") is None or importlib.util.find_spec("rich") is None:
        sys.exit(
            "otel-cbtop needs click and rich, which are not installed: "
            "pip install 'otel-cbtop-exporter[cli]'"
        )
    if sys.stdout is None:
        sys.exit("otel-cbtop: standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that lack a character
    try:
        try:
            importlib.import_module("otel_cbtop_exporter.cli.app").app()
        finally:
            sys.stdout.flush()
    except OSError as error:  # a full disk behind standard output, a file that vanished
        sys.stdout = None  # Python would try to write the rest again
        sys.exit(f"otel-cbtop: {error.strerror or error}")

"""The console command `otel-cbtop`. What it needs is the extra `cli`; the exporters do not."""

from __future__ import annotations

import importlib
import importlib.util
import sys

__all__ = ["main"]


def main() -> None:
    """Run `otel-cbtop`, or say what to install for it."""
    if importlib.util.find_spec("click") is None or importlib.util.find_spec("rich") is None:
        sys.exit(
            "otel-cbtop needs click and rich, which are not installed: "
            "pip install 'otel-cbtop-exporter[cli]'"
        )
    importlib.import_module("otel_cbtop_exporter.cli.app").app()

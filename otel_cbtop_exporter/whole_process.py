"""Everything of a process at once, for whoever has no exporter at hand."""

from __future__ import annotations

import time
from collections.abc import Iterable

from otel_cbtop_exporter.delivery.pipeline import LONGEST_WAIT_SECONDS, Pipeline, open_pipelines
from otel_cbtop_exporter.health import SinkHealth, combined

__all__ = ["flush_all", "force_flush", "process_health"]


def force_flush(timeout_seconds: float = 10.0) -> bool:
    """Try to deliver what every exporter and streamer of this process has accepted.

    For whoever has no exporter at hand: a provider's own `force_flush` empties the SDK's queues
    into the exporters, and goes no further.

    Args:
        timeout_seconds: For all of them together.

    Returns:
        False if some of it still waits.
    """
    return flush_all(open_pipelines(), timeout_seconds)


def process_health() -> dict[str, SinkHealth]:
    """Return how each sink of this process is doing, by its kind and its destination.

    For whoever has no exporter at hand. What was lost before any sink, such as an item that
    could not be mapped, is in the exporters' own `health()` alone.
    """
    found: dict[str, list[SinkHealth]] = {}
    for pipeline in open_pipelines():
        found.setdefault(pipeline.label, []).append(pipeline.health())
    return {label: combined(healths) for label, healths in found.items()}


def flush_all(pipelines: Iterable[Pipeline], timeout_seconds: float) -> bool:
    """Flush one pipeline after the other, within the time; False if something still waits."""
    deadline = time.monotonic() + min(timeout_seconds, LONGEST_WAIT_SECONDS)
    flushed = [one.force_flush(max(0.0, deadline - time.monotonic())) for one in pipelines]
    return all(flushed)

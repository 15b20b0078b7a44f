"""All exporters and streamers of a process at once, for code that has none of them at hand."""

from __future__ import annotations

from otel_cbtop_exporter.delivery.pipeline import open_pipelines
from otel_cbtop_exporter.health import SinkHealth, combined
from otel_cbtop_exporter.signal_delivery import flush_all, unusable_sinks

__all__ = ["force_flush", "process_health"]


def force_flush(timeout_seconds: float = 10.0) -> bool:
    """Try to deliver what every exporter and streamer of this process has accepted.

    For code that has no exporter at hand: a provider's own `force_flush` only empties the SDK's
    queues into the exporters and goes no further.

    Args:
        timeout_seconds: The timeout for all of them together.

    Returns:
        False if some of it still waits.
    """
    return flush_all(open_pipelines(), timeout_seconds)


def process_health() -> dict[str, SinkHealth]:
    """Return how each sink of this process is doing, by its kind and destination.

    For code that has no exporter at hand. A sink that cannot be used is listed by its kind alone,
    with the reason as its last error. What was lost because of it, or before any sink (such as an
    item that could not be mapped), is in the exporters' own `health()`.
    """
    found: dict[str, list[SinkHealth]] = {}
    for pipeline in open_pipelines():
        found.setdefault(pipeline.label, []).append(pipeline.health())
    unusable = {name: SinkHealth(last_error=why) for name, why in unusable_sinks().items()}
    return {**unusable, **{label: combined(healths) for label, healths in found.items()}}

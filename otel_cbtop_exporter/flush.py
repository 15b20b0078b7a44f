"""Everything of a process at once, for whoever has no exporter at hand."""

from __future__ import annotations

from otel_cbtop_exporter.delivery.pipeline import flush_all, open_pipelines

__all__ = ["force_flush"]


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

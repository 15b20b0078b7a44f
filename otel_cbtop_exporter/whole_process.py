"""All exporters and streamers of a process at once, for code that has none of them at hand."""

from __future__ import annotations

import msgspec

from otel_cbtop_exporter.delivery.pipeline import open_pipelines
from otel_cbtop_exporter.health import SinkHealth, combined
from otel_cbtop_exporter.signal_delivery import deliveries, flush_all

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

    For code that has no exporter at hand. What closed exporters counted is added, as long as they
    exist; what they left in a spool is not, because it waits for others. A sink that cannot be
    used is listed by its kind alone, with the reason as its last error. What was lost because of
    it, or before any sink (such as an item that could not be mapped), is listed by the kind of
    exporter, as `cbtop_span_exporter`.
    """
    found: dict[str, list[SinkHealth]] = {}
    for one in deliveries():
        found.update((name, [SinkHealth(last_error=why)]) for name, why in one.unusable.items())
        lost = one.lost_before_sinks()
        if lost != SinkHealth():
            lost = msgspec.structs.replace(lost, connected=True)  # nothing is away because of it
            found.setdefault(one.component, []).append(lost)
    pipelines = open_pipelines(or_closed=True)
    in_use = {pipeline.label for pipeline in pipelines if not pipeline.closed}
    for pipeline in pipelines:
        health = pipeline.health()
        if pipeline.closed and health == SinkHealth():  # in a child, it was the parent's
            continue
        if pipeline.ended:
            health = msgspec.structs.replace(
                health, events_spooled=0, spool_bytes=0, oldest_spooled_ns=None
            )
        if pipeline.closed and pipeline.label in in_use:  # its counters alone are of interest
            health = msgspec.structs.replace(
                health, connected=True, last_write_ns=None, last_error="", client_statistics={}
            )
        found.setdefault(pipeline.label, []).append(health)
    return {name: combined(healths) for name, healths in found.items()}

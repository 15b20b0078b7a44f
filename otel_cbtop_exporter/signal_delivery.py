"""What the three exporters have in common: a configuration, and a pipeline for each sink."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.delivery.pipeline import LONGEST_WAIT_SECONDS, Pipeline, acquire
from otel_cbtop_exporter.env import SignalName, configuration
from otel_cbtop_exporter.errors import CbtopError, ConfigError
from otel_cbtop_exporter.event_batch import Events
from otel_cbtop_exporter.exit_on_sigterm import exit_on_sigterm
from otel_cbtop_exporter.health import HealthCounters, SinkHealth, combined
from otel_cbtop_exporter.own_log import RateLimitedLog, counted, were
from otel_cbtop_exporter.sdk_metrics import SdkMetrics
from otel_cbtop_exporter.sinks import check_sink, sink_factory
from otel_cbtop_exporter.sinks.base import Sink
from otel_cbtop_exporter.tally import Tally

__all__ = ["Pieces", "SignalDelivery", "deliveries", "flush_all"]

_logger = logging.getLogger("otel_cbtop_exporter")

_T = TypeVar("_T")

# `otel.component.type` for what is lost before any sink; sinks have component types of their own.
_COMPONENTS: dict[SignalName, str] = {
    "traces": "cbtop_span_exporter",
    "metrics": "cbtop_metric_exporter",
    "logs": "cbtop_log_exporter",
}
# The options, besides the sink's own, in which exporters that share a pipeline must agree.
_SHARED = (
    "delivery",
    "retry",
    "spool",
    "internal_metrics",
    "max_batch_events",
    "max_batch_bytes",
)
# How one item of each signal counts that could not be mapped.
_ONE: dict[SignalName, Tally] = {
    "traces": Tally(1, spans=1),
    "metrics": Tally(1, data_points=1),
    "logs": Tally(1, log_records=1),
}


@dataclass(frozen=True)
class Pieces(Generic[_T]):
    """How to split a batch in which something cannot be mapped.

    Attributes:
        of: Returns smaller batches; empty if the batch cannot be split further.
        name_of: Names a batch that cannot be split further.
    """

    of: Callable[[Sequence[_T]], Sequence[Sequence[_T]]]
    name_of: Callable[[Sequence[_T]], str]


_ITEMS: Pieces[Any] = Pieces(
    lambda batch: [[item] for item in batch] if len(batch) > 1 else [], lambda _batch: "an item"
)


class SignalDelivery:
    """What the three exporters have in common: a configuration, and a pipeline for each sink.

    Args:
        signal: The signal whose environment variables are read.
        sink: A ready sink, or names that override the environment's.
        options: Given in code or in a declarative file; they override the environment's.

    Attributes:
        config: What was asked for. If exporters share a ready sink, the first one's delivery
            options hold.
        component: The type of component under which is counted what no sink has got.
        unusable: Sinks that get nothing, and why.
    """

    def __init__(
        self, signal: SignalName, sink: Sink | str | Sequence[str] | None, options: dict[str, Any]
    ) -> None:
        # A null in a declarative file becomes {}, and names may be in a set.
        if sink is None or isinstance(sink, Sequence | Mapping | AbstractSet):
            ready, given = None, {**options, "sink": sink}
        else:
            check_sink(sink)
            ready, given = sink, options
        self.config = configuration(signal, given)
        self._signal = signal
        self.component = _COMPONENTS[signal]
        self._metrics = SdkMetrics(self.component) if self.config.internal_metrics else None
        self._losses = _Losses(self._metrics)
        self._shut_down = threading.Lock()  # acquired once, without waiting, and never released
        self.unusable: dict[str, str] = {}
        if ready is not None:
            self._pipelines = [_pipeline_of(ready, self.config, options)]
        else:
            self._pipelines = self._acquire_all(given)
        if self.config.exit_on_sigterm:
            exit_on_sigterm()
        key = id(self)
        _live[key] = weakref.ref(self, lambda _: _live.pop(key, None))

    def _acquire_all(self, given: dict[str, Any]) -> list[Pipeline]:
        pipelines: list[Pipeline] = []
        for name in self.config.sink:
            if name == "none":
                continue
            try:
                factory = sink_factory(name, self.config)
                pipelines.append(acquire(_sharing_key(name, self.config), factory, self.config))
            # Never raise for a sink from the environment: any exception would switch off the other
            # exporters and all instrumentation.
            except Exception as error:
                is_ours = isinstance(error, CbtopError)
                why = str(error) if is_ours else f"sink {name}: {type(error).__name__}: {error}"
                if given.get("sink") or given.get(name):
                    for pipeline in pipelines:
                        pipeline.release(0)
                    raise ConfigError(why) from error
                self.unusable[name] = why
                _logger.error("%s; until then sink %s gets nothing", why, name)
        # Those that need no time come first: the others have what they leave of their shares.
        return sorted(pipelines, key=lambda one: (not one.is_spooled, not one.is_local))

    def export(
        self,
        map_batch: Callable[[Sequence[_T]], Events],
        batch: Sequence[_T],
        seconds: float,
        pieces: Pieces[_T] | None = None,
    ) -> bool:
        """Map a batch and submit it to every sink; never raises.

        Args:
            map_batch: Makes events of a batch.
            batch: What the SDK gave.
            seconds: The longest that the export may take.
            pieces: How to split a batch in which something cannot be mapped; into its items by
                default.
        """
        deadline = time.monotonic() + seconds
        self._own_losses().log.tell_due()
        events, ok = self._map(map_batch, batch, pieces or _ITEMS)
        if self._shut_down.locked():
            self._lose("shutdown", events, "it came after shutdown")
            return False
        if self.unusable and events:
            ok = False
            for name in self.unusable:
                self._lose("no_sink", events, f"sink {name} cannot be used", f"no_sink {name}")
        for number, pipeline in enumerate(self._pipelines):
            # An equal share of what is left: a sink that hangs leaves the others theirs.
            left = max(0.0, deadline - time.monotonic())
            ok = pipeline.submit(events, left / (len(self._pipelines) - number)) and ok
        return ok

    def _map(
        self,
        map_batch: Callable[[Sequence[_T]], Events],
        batch: Sequence[_T],
        pieces: Pieces[_T],
    ) -> tuple[Events, bool]:
        try:
            return map_batch(batch), True
        # Mapping has a rule for everything that the SDK makes. Third-party objects may raise
        # anything when they are read, which must cost neither their neighbours nor the application.
        except Exception as error:  # noqa: BLE001
            smaller, what = _smaller(batch, pieces)
            if not smaller:
                word = type(error).__name__
                self._reject(word, _ONE[self._signal], f"{what} could not be mapped: {word}")
                return Events(()), False
            mapped = [self._map(map_batch, piece, pieces)[0] for piece in smaller]
            return Events(part for events in mapped for part in events.parts), False

    def on_mapping_loss(self, reason: str, what: str, lost: Tally) -> None:
        """Count and log what mapping had to leave out: events, or a field if no event is lost."""
        if lost.events:
            self._reject(reason, lost, f"{counted(lost.events)} of {what!r} left out: {reason}")
            return
        losses = self._own_losses()
        losses.counters.values_lost(reason, 1)
        cause = f"{reason} field"
        losses.log.log(logging.WARNING, cause, f"a field of {what!r} left out: {reason}")

    def _lose(self, reason: str, events: Events, why: str, cause: str = "") -> None:
        losses = self._own_losses()
        losses.counters.dropped(reason, Tally.of(events))
        what = f"{were(len(events))} dropped: {why}"
        losses.log.log(logging.ERROR, cause or reason, what, events=len(events))

    def _reject(self, reason: str, tally: Tally, message: str) -> None:
        losses = self._own_losses()
        losses.counters.rejected(reason, tally)
        losses.log.log(logging.WARNING, reason, message, events=tally.events)

    def _own_losses(self) -> _Losses:
        # New ones in a forked child: another thread of the parent may have held the locks.
        if self._losses.pid != os.getpid():
            self._losses = _Losses(self._metrics)
        return self._losses

    def force_flush(self, timeout_millis: float) -> bool:
        """Deliver what was accepted, within the timeout; False if something still waits."""
        return flush_all(self._pipelines, timeout_millis / 1000)

    def shutdown(self, timeout_millis: float) -> None:
        """Release the pipelines, within the timeout; a second call does nothing."""
        if not self._shut_down.acquire(blocking=False):
            return
        deadline = time.monotonic() + min(timeout_millis / 1000, LONGEST_WAIT_SECONDS)
        for pipeline in self._pipelines:
            pipeline.release(max(0.0, deadline - time.monotonic()))
        self._own_losses().log.tell_held_back()

    def health(self) -> SinkHealth:
        """Return the health of the sink, or of all sinks together."""
        unusable = [SinkHealth(last_error=why) for why in self.unusable.values()]
        health = combined([pipeline.health() for pipeline in self._pipelines] + unusable)
        lost = self.lost_before_sinks()
        return msgspec.structs.replace(
            health,
            events_rejected=health.events_rejected + lost.events_rejected,
            events_dropped=dict(Counter(health.events_dropped) + Counter(lost.events_dropped)),
            values_lost=dict(Counter(health.values_lost) + Counter(lost.values_lost)),
        )

    def lost_before_sinks(self) -> SinkHealth:
        """Return the counters of what no sink has got, such as an item that cannot be mapped."""
        return self._own_losses().counters.snapshot()


def flush_all(pipelines: Iterable[Pipeline], timeout_seconds: float) -> bool:
    """Flush one pipeline after the other, within the timeout; False if something still waits."""
    deadline = time.monotonic() + min(timeout_seconds, LONGEST_WAIT_SECONDS)
    flushed = [one.force_flush(max(0.0, deadline - time.monotonic())) for one in pipelines]
    return all(flushed)


# A dict by id: a list of its values is made atomically, whatever other threads do meanwhile.
_live: dict[int, weakref.ref[SignalDelivery]] = {}


def deliveries() -> list[SignalDelivery]:
    """Return those of this process that still exist, the shut down ones too."""
    return [one for reference in list(_live.values()) if (one := reference()) is not None]


def _smaller(batch: Sequence[_T], pieces: Pieces[_T]) -> tuple[Sequence[Sequence[_T]], str]:
    """Return smaller batches; if there are none, also the name of the batch."""
    try:
        smaller = pieces.of(batch)
        return smaller, "" if smaller else pieces.name_of(batch)
    # What cannot be mapped may be impossible to split as well.
    except Exception:  # noqa: BLE001
        return _ITEMS.of(batch), _ITEMS.name_of(batch)


class _Losses:
    """What was lost before it reached any pipeline, in one process."""

    def __init__(self, metrics: SdkMetrics | None) -> None:
        self.pid = os.getpid()
        self.counters = HealthCounters(metrics)
        self.log = RateLimitedLog(_logger)


def _pipeline_of(sink: Sink, config: ExporterConfig, given: Mapping[str, Any]) -> Pipeline:
    """Acquire the one pipeline of a ready sink.

    Args:
        sink: The ready sink.
        config: This exporter's configuration.
        given: The options of it that were given in code.

    Raises:
        ConfigError: Another exporter uses the sink with options other than those given.
    """
    pipeline = acquire(id(sink), lambda: sink, config)
    others = pipeline.config
    differ = [name for name in _SHARED if getattr(others, name) != getattr(config, name)]
    if not differ:
        return pipeline
    what = f"sink {sink.name} is in use by another exporter with other options: {', '.join(differ)}"
    # Environment variables must not stop an application.
    if all(given.get(name) in (None, {}) for name in differ):
        _logger.warning("%s; those of the first one hold", what)
        return pipeline
    pipeline.release(0)
    raise ConfigError(f"{what}; give both the same, or each a sink of its own")


def _sharing_key(name: str, config: ExporterConfig) -> bytes:
    """Return a key that is equal for exporters that can share a pipeline; kept in memory only."""
    shared = [getattr(config, option) for option in _SHARED]
    return msgspec.msgpack.encode((name, getattr(config, name), shared))

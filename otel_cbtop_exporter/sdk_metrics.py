"""The `otel.sdk.exporter.*` metrics: what OpenTelemetry's conventions ask of every exporter.

Belongs here: instruments, attributes, and when the meter provider is asked for them. Not here:
what happened to which records (`health.py` tells).
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Meter,
    Observation,
    get_meter_provider,
)
from opentelemetry.semconv._incubating.attributes.otel_attributes import (
    OTEL_COMPONENT_NAME,
    OTEL_COMPONENT_TYPE,
)
from opentelemetry.semconv._incubating.metrics import otel_metrics
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE

from otel_cbtop_exporter.tally import Tally

__all__ = ["SdkMetrics"]

_logger = logging.getLogger("otel_cbtop_exporter")

_SCOPE = "otel_cbtop_exporter"


class _Item(NamedTuple):
    """What the conventions count, and with which instruments."""

    unit: str
    count: Callable[[Tally], int]
    inflight: str
    create_exported: Callable[[Meter], Counter]


_ITEMS = (
    _Item(
        "{span}",
        lambda tally: tally.spans,
        otel_metrics.OTEL_SDK_EXPORTER_SPAN_INFLIGHT,
        otel_metrics.create_otel_sdk_exporter_span_exported,
    ),
    _Item(
        "{log_record}",
        lambda tally: tally.log_records,
        otel_metrics.OTEL_SDK_EXPORTER_LOG_INFLIGHT,
        otel_metrics.create_otel_sdk_exporter_log_exported,
    ),
    _Item(
        "{data_point}",
        lambda tally: tally.data_points,
        otel_metrics.OTEL_SDK_EXPORTER_METRIC_DATA_POINT_INFLIGHT,
        otel_metrics.create_otel_sdk_exporter_metric_data_point_exported,
    ),
)


class _Instruments(NamedTuple):
    exported: tuple[Counter, ...]
    """In the order of `_ITEMS`."""
    duration: Histogram


class SdkMetrics:
    """The metrics of one component; safe between threads and in forked children.

    What is in flight is looked up when metrics are collected, and not added up, so that it is
    right after a fork, a take-over and a damaged file too. Recording starts nothing and
    exports nothing: a reader that exports through the component measured here sees a few
    points more with each collection, and always the same number of them.

    Args:
        component_type: `otel.component.type`; the name is that and a counter.
        inflight: Returns what was accepted and has no fate yet.
    """

    def __init__(self, component_type: str, inflight: Callable[[], Tally] = Tally) -> None:
        self.attributes = {
            OTEL_COMPONENT_TYPE: component_type,
            OTEL_COMPONENT_NAME: f"{component_type}/{next(_numbers[component_type])}",
        }
        self._inflight = inflight
        self._instruments: _Instruments | None = None
        self._is_open = False
        self._ever_inflight: set[str] = set()

    def open(self) -> None:
        """Get the instruments, unless they are there: not before there is something to measure.

        By then the application has set its meter provider; if not, the API's stand-ins pass on
        to the one that is set later.
        """
        if self._is_open:
            return
        self._is_open = True
        try:
            self._instruments = _make_instruments()
        # It loads what OTEL_PYTHON_METER_PROVIDER names, which may raise anything.
        except Exception as error:  # noqa: BLE001
            _logger.warning("no metrics about exporters: %s", type(error).__name__)
            return
        _open[id(self)] = weakref.ref(self, partial(_forget, id(self)))

    def exported(self, tally: Tally, error_type: str = "") -> None:
        """Count items whose fate is known: delivered, or lost for a reason.

        Args:
            tally: Of them.
            error_type: The reason, a short stable word; "" if they were delivered.
        """
        self.open()
        if self._instruments is None:
            return
        attributes = self._with(error_type)
        for item, counter in zip(_ITEMS, self._instruments.exported, strict=True):
            number = item.count(tally)
            if number:
                counter.add(number, attributes)

    def operation(self, seconds: float, error_type: str = "") -> None:
        """Record how long one write took, and why it failed."""
        self.open()
        if self._instruments is not None:
            self._instruments.duration.record(seconds, self._with(error_type))

    def observe(self, item: _Item) -> Iterator[Observation]:
        """Yield what is in flight, once there was something."""
        number = item.count(self._inflight())
        if number:
            self._ever_inflight.add(item.unit)
        if item.unit in self._ever_inflight:
            yield Observation(number, self.attributes)

    def _with(self, error_type: str) -> dict[str, str]:
        return {**self.attributes, ERROR_TYPE: error_type} if error_type else self.attributes


_numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)

# A plain dict, because copying its values is atomic and needs no lock that a fork could leave
# locked in the child.
_open: dict[int, weakref.ref[SdkMetrics]] = {}


def _forget(key: int, _: object = None) -> None:
    _open.pop(key, None)


def _make_instruments() -> _Instruments:
    meter = get_meter_provider().get_meter(_SCOPE)
    for item in _ITEMS:
        # A second instrument of this name is the first one, callbacks and all, so there is one
        # callback for all components.
        meter.create_observable_up_down_counter(
            item.inflight,
            callbacks=[partial(_observe, item)],
            unit=item.unit,
            description="Items that were passed to the exporter and have not been exported yet.",
        )
    return _Instruments(
        tuple(item.create_exported(meter) for item in _ITEMS),
        otel_metrics.create_otel_sdk_exporter_operation_duration(meter),
    )


def _observe(item: _Item, _: CallbackOptions) -> Iterable[Observation]:
    for reference in list(_open.values()):
        component = reference()
        if component is not None:
            yield from component.observe(item)

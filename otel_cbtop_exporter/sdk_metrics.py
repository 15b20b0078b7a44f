"""The `otel.sdk.exporter.*` metrics: what OpenTelemetry's conventions ask of every exporter.

Belongs here: instruments, attributes, and when the meter provider is asked for them. Not here:
what happened to which records (`health.py` tells).
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Observation,
    get_meter_provider,
)

from otel_cbtop_exporter.tally import Tally

__all__ = ["SdkMetrics"]

_logger = logging.getLogger("otel_cbtop_exporter")

_SCOPE = "otel_cbtop_exporter"


class _Item(NamedTuple):
    """What the conventions count: their word for it, its unit, and how many a tally has."""

    word: str
    unit: str
    count: Callable[[Tally], int]


_ITEMS = (
    _Item("span", "{span}", lambda tally: tally.spans),
    _Item("log", "{log_record}", lambda tally: tally.log_records),
    _Item("metric_data_point", "{data_point}", lambda tally: tally.data_points),
)


class _Instruments(NamedTuple):
    exported: tuple[Counter, ...]
    """In the order of `_ITEMS`."""
    duration: Histogram
    component_type: str
    """The attribute's name, like those below."""
    component_name: str
    error_type: str


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
        self._type = component_type
        self._name = f"{component_type}/{next(_numbers[component_type])}"
        self._inflight = inflight
        self._instruments: _Instruments | None = None
        self._failed = False
        self._opening: set[int] = set()
        self._ever_inflight: set[str] = set()

    def open(self) -> None:
        """Get the instruments, unless they are there: not before there is something to measure.

        By then the application has set its meter provider; if not, the API's stand-ins pass on
        to the one that is set later.
        """
        thread = threading.get_ident()
        if self._instruments is not None or self._failed or thread in self._opening:
            return
        # Several threads may come at once: a meter gives all of them the same instruments. One
        # that is here already would not end: what is logged meanwhile may be exported.
        self._opening.add(thread)
        try:
            self._instruments = _make_instruments()
        # It loads what OTEL_PYTHON_METER_PROVIDER names, which may raise anything, and names of
        # the conventions that are still incubating.
        except Exception as error:  # noqa: BLE001
            self._failed = True
            _logger.warning("no metrics about exporters: %s", type(error).__name__)
        else:
            _open[id(self)] = weakref.ref(self, partial(_forget, id(self)))
        finally:
            self._opening.discard(thread)

    def exported(self, tally: Tally, error_type: str = "") -> None:
        """Count items whose fate is known: delivered, or lost for a reason.

        Args:
            tally: Of them.
            error_type: The reason, a short stable word; "" if they were delivered.
        """
        self.open()
        if self._instruments is None:
            return
        attributes = self._attributes(self._instruments, error_type)
        for item, counter in zip(_ITEMS, self._instruments.exported, strict=True):
            number = item.count(tally)
            if number:
                counter.add(number, attributes)

    def operation(self, seconds: float, error_type: str = "") -> None:
        """Record how long one write took, and why it failed."""
        self.open()
        if self._instruments is not None:
            attributes = self._attributes(self._instruments, error_type)
            self._instruments.duration.record(seconds, attributes)

    def observe(self, item: _Item) -> Iterator[Observation]:
        """Yield what is in flight, once there was something."""
        number = item.count(self._inflight())
        if number:
            self._ever_inflight.add(item.word)
        if item.word in self._ever_inflight and self._instruments is not None:
            yield Observation(number, self._attributes(self._instruments))

    def _attributes(self, names: _Instruments, error_type: str = "") -> dict[str, str]:
        attributes = {names.component_type: self._type, names.component_name: self._name}
        return {**attributes, names.error_type: error_type} if error_type else attributes


_numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)

# A plain dict, because copying its values is atomic and needs no lock that a fork could leave
# locked in the child.
_open: dict[int, weakref.ref[SdkMetrics]] = {}


def _forget(key: int, _: object = None) -> None:
    _open.pop(key, None)


def _make_instruments() -> _Instruments:
    # Not at the top: they take milliseconds that hardly anybody needs, and an incubating name
    # that is gone tomorrow must cost these metrics alone.
    from opentelemetry.semconv._incubating.attributes import otel_attributes  # noqa: PLC0415
    from opentelemetry.semconv._incubating.metrics import otel_metrics  # noqa: PLC0415
    from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE  # noqa: PLC0415

    meter = get_meter_provider().get_meter(_SCOPE)
    for item in _ITEMS:
        # A second instrument of this name is the first one, callbacks and all, so there is one
        # callback for all components.
        meter.create_observable_up_down_counter(
            getattr(otel_metrics, f"OTEL_SDK_EXPORTER_{item.word.upper()}_INFLIGHT"),
            callbacks=[partial(_observe, item)],
            unit=item.unit,
            description="What was passed to the exporter and has not been exported yet.",
        )
    return _Instruments(
        tuple(
            getattr(otel_metrics, f"create_otel_sdk_exporter_{item.word}_exported")(meter)
            for item in _ITEMS
        ),
        otel_metrics.create_otel_sdk_exporter_operation_duration(meter),
        otel_attributes.OTEL_COMPONENT_TYPE,
        otel_attributes.OTEL_COMPONENT_NAME,
        ERROR_TYPE,
    )


def _observe(item: _Item, _: CallbackOptions) -> Iterable[Observation]:
    for reference in list(_open.values()):
        component = reference()
        if component is not None:
            yield from component.observe(item)

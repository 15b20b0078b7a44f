"""The `otel.sdk.exporter.*` metrics, which OpenTelemetry's conventions ask of every exporter.

Belongs here: instruments, attributes, and when the meter provider is asked for them. Not here:
what happened to which records, which `health.py` reports to this module.
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
    """Something the conventions count: their word for it, its unit, and its number in a tally."""

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
    """The counters, in the order of `_ITEMS`."""
    duration: Histogram
    component_type: str
    """The name of this attribute, and below the names of the other two."""
    component_name: str
    error_type: str


class SdkMetrics:
    """The metrics of one component; safe to share between threads and in forked children.

    What is in flight is looked up when metrics are collected, not counted along the way, so it is
    right even after a fork, a take-over or a damaged file. Recording starts nothing and
    exports nothing: a reader that exports through the component measured here sees a few more
    points in each collection, and always the same number of them.

    Args:
        component_type: The value of `otel.component.type`; `otel.component.name` is that and a
            counter.
        inflight: Returns the tally of what was accepted and is neither delivered nor lost yet.
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
        """Create the instruments if there are none; called only when there is something to measure.

        By then the application has set its meter provider. If it has not, the API's proxies pass
        the measurements on to the provider that is set later.
        """
        thread = threading.get_ident()
        if self._instruments is not None or self._failed or thread in self._opening:
            return
        # Several threads may get here at once: a meter gives all of them the same instruments. The
        # same thread must not get here again, or it would never end: what is logged meanwhile may
        # be exported.
        self._opening.add(thread)
        try:
            self._instruments = _make_instruments()
        # This loads what OTEL_PYTHON_METER_PROVIDER names, which may raise anything, and names from
        # the conventions that are still incubating and may be gone.
        except Exception as error:  # noqa: BLE001
            self._failed = True
            _logger.warning("no metrics about exporters: %s", type(error).__name__)
        else:
            _open[id(self)] = weakref.ref(self, partial(_forget, id(self)))
        finally:
            self._opening.discard(thread)

    def exported(self, tally: Tally, error_type: str = "") -> None:
        """Count items that were delivered, or lost for a reason.

        Args:
            tally: How many items of each kind.
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
        """Record how long one write took, and why it failed if it did."""
        self.open()
        if self._instruments is not None:
            attributes = self._attributes(self._instruments, error_type)
            self._instruments.duration.record(seconds, attributes)

    def observe(self, item: _Item) -> Iterator[Observation]:
        """Yield the number of items in flight, from the first time that there are any."""
        number = item.count(self._inflight())
        if number:
            self._ever_inflight.add(item.word)
        if item.word in self._ever_inflight and self._instruments is not None:
            yield Observation(number, self._attributes(self._instruments))

    def _attributes(self, names: _Instruments, error_type: str = "") -> dict[str, str]:
        attributes = {names.component_type: self._type, names.component_name: self._name}
        return {**attributes, names.error_type: error_type} if error_type else attributes


_numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)

# A plain dict, because copying its values is atomic: it needs no lock, which a fork could leave
# locked in the child.
_open: dict[int, weakref.ref[SdkMetrics]] = {}


def _forget(key: int, _: object = None) -> None:
    _open.pop(key, None)


def _make_instruments() -> _Instruments:
    # Not at the top of the module: importing them takes milliseconds, which few processes need. If
    # an incubating name disappears, only these metrics must be lost.
    from opentelemetry.semconv._incubating.attributes import otel_attributes  # noqa: PLC0415
    from opentelemetry.semconv._incubating.metrics import otel_metrics  # noqa: PLC0415
    from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE  # noqa: PLC0415

    meter = get_meter_provider().get_meter(_SCOPE)
    for item in _ITEMS:
        # Creating an instrument of the same name again returns the first one with its callbacks, so
        # there is one callback for all components.
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

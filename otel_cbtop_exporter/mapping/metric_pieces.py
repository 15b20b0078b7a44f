"""Splits a batch of metrics into smaller pieces, for when something in it cannot be mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics.export import ResourceMetrics

__all__ = ["first_name", "pieces_of"]


def pieces_of(batch: Sequence[ResourceMetrics]) -> list[list[ResourceMetrics]]:
    """Split a batch into its metrics, one metric into its points, and one point into nothing."""
    metrics = [
        replace(one, scope_metrics=[replace(scope, metrics=[metric])])
        for one in batch
        for scope in one.scope_metrics
        for metric in scope.metrics
    ]
    if len(metrics) != 1:
        return [[metric] for metric in metrics]
    ((scope,), (alone,)) = metrics[0].scope_metrics, metrics[0].scope_metrics[0].metrics
    data: Any = alone.data  # may be of a kind that only a later SDK has
    points = getattr(data, "data_points", ())
    if len(points) < 2:
        return []
    of_point = [replace(alone, data=replace(data, data_points=[point])) for point in points]
    return [[replace(metrics[0], scope_metrics=[replace(scope, metrics=[m])])] for m in of_point]


def first_name(batch: Sequence[ResourceMetrics]) -> str:
    """Return the `repr` of the first metric's name, for a message; "" if there is no metric."""
    names = (
        repr(metric.name)
        for one in batch
        for scope in one.scope_metrics
        for metric in scope.metrics
    )
    return next(names, "")

"""Mappers with default options; `map_metrics` also lists the losses they report."""

from otel_cbtop_exporter.config import DEFAULT_RESOURCE_TAGS, DEFAULT_SPAN_TAGS
from otel_cbtop_exporter.mapping.logs import LogMapper
from otel_cbtop_exporter.mapping.metrics import MetricMapper
from otel_cbtop_exporter.mapping.spans import SpanMapper


def map_spans(*spans, resource_tags=DEFAULT_RESOURCE_TAGS, span_tags=DEFAULT_SPAN_TAGS, redact=()):
    return SpanMapper(resource_tags, span_tags, redact).map(spans)


def map_logs(*records, resource_tags=DEFAULT_RESOURCE_TAGS, redact=()):
    return LogMapper(resource_tags, redact).map(records)


def map_metrics(
    batch, *, losses=None, exemplars="histograms", resource_tags=DEFAULT_RESOURCE_TAGS, redact=()
):
    def on_loss(reason, what, events):
        assert losses is not None, f"unexpected loss: {reason} {what} {events}"
        losses.append((reason, what, events.events))

    return MetricMapper(resource_tags, exemplars, redact, on_loss).map(batch)

"""User code that only has to type-check."""

from otel_cbtop_exporter.events import Event, decode_event

event: Event = decode_event(b"{}")

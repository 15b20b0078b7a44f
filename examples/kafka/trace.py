"""Print one trace from the topics of spans, logs and metrics, joined by its correlation id.

Usage: trace.py TRACE_ID [--bootstrap-servers HOST:PORT] [--topics TOPIC,TOPIC,...]

Spans, span events, links and logs have their trace id as the key, so that each topic has all of
a trace in one partition. Exemplars are keyed by their series and may be in any partition, so
every partition is read once, from its beginning to its current end.
"""

import argparse
import sys
from datetime import datetime, timezone

from confluent_kafka import Consumer, KafkaException, TopicPartition

from otel_cbtop_exporter import EventError, decode_event


def read(consumer, topics):
    """Yield every message that the topics hold now."""
    ends = {}
    for topic in topics:
        metadata = consumer.list_topics(topic, timeout=10).topics[topic]
        if metadata.error is not None:  # not every application has all three signals
            print(f"topic {topic}: {metadata.error.str()}", file=sys.stderr)
            continue
        for number in metadata.partitions:
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
            if first < end:
                ends[topic, number] = end
    consumer.assign([TopicPartition(topic, number, 0) for topic, number in ends])
    while ends:
        for message in consumer.consume(1000, timeout=1):
            if message.error() is not None:
                raise KafkaException(message.error())
            yield message
        # Compare the consumer's positions, not the offsets of messages: offsets have gaps.
        for at in consumer.position([TopicPartition(*place) for place in ends]):
            if at.offset >= ends[at.topic, at.partition]:
                del ends[at.topic, at.partition]


def events_of(trace_id, messages):
    seen = set()
    for message in messages:
        # A cheap check of the bytes first: most messages belong to other traces.
        value = message.value() or b""
        if trace_id.encode() not in value or value in seen:
            continue
        seen.add(value)  # delivery is at least once, so a message may be there twice
        try:
            # With a schema registry, the event comes after the id of its schema.
            value = message.value()[5:] if message.value()[:1] == b"\0" else message.value()
            event = decode_event(value)
        except EventError as error:
            print(f"{message.topic()}[{message.partition()}] at {message.offset()}: {error}")
            continue
        if event.correlation_id == trace_id:
            yield event


def show(events):
    """Print spans below their parents, and everything else below its span."""
    events = sorted(events, key=lambda event: (event.timestamp_ns, event.signal != "span"))
    spans = {event.fields["span_id"] for event in events if event.signal == "span"}
    below = {}
    for event in events:
        name = "parent_span_id" if event.signal == "span" else "span_id"
        above = event.fields.get(name)
        below.setdefault(above if above in spans else None, []).append(event)
    show_below(below, None, 0)


def show_below(below, span_id, depth):
    for event in below.get(span_id, ()):
        moment = datetime.fromtimestamp(event.timestamp_ns / 1e9, timezone.utc)
        indent = "  " * depth
        print(f"{moment:%H:%M:%S.%f}  {indent}{event.signal or 'event'}  {described(event)}")
        if event.signal == "span":
            show_below(below, event.fields["span_id"], depth + 1)


def described(event):
    fields, tags = event.fields, event.tags
    if event.signal == "span":
        took_ms = fields.get("duration_ns", 0) / 1e6
        failed = "  ERROR" if fields["error"] else ""
        name = f"{tags.get('service.name', '')}: {tags.get('span.name', '')}"
        return f"{name}  {took_ms:.1f} ms{failed}"
    if event.signal == "log":
        return f"{tags.get('severity_text', '')}: {fields.get('body', '')}"
    if event.signal == "span_event":
        return tags.get("exception.type") or tags.get("event.name", "")
    if event.signal == "span_link":
        return f"to {fields.get('linked_trace_id', '?')}"
    name = tags.get("metric.name", event.measurement)
    return f"{name}: {fields.get('value', fields.get('max'))}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace_id", help="32 hex digits")
    parser.add_argument("--bootstrap-servers", default="localhost:9092")
    parser.add_argument("--topics", default="otel.spans,otel.logs,otel.metrics")
    options = parser.parse_args()
    consumer = Consumer(
        {
            "bootstrap.servers": options.bootstrap_servers,
            "group.id": "trace-example",  # required, but without effect: nothing is committed
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    topics = [topic.strip() for topic in options.topics.split(",")]
    try:
        show(events_of(options.trace_id.lower(), read(consumer, topics)))
    except KafkaException as error:
        raise SystemExit(f"{options.bootstrap_servers}: {error.args[0].str()}") from None
    finally:
        consumer.close()


if __name__ == "__main__":
    main()

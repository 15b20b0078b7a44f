"""The essential librdkafka statistics, by names that say what they count."""

from __future__ import annotations

import msgspec

__all__ = ["essentials"]


class _RoundTrip(msgspec.Struct):
    p99: int = 0


class _Broker(msgspec.Struct):
    state: str = ""
    nodeid: int = -1
    txerrs: int = 0
    txretries: int = 0
    rtt: _RoundTrip = msgspec.field(default_factory=_RoundTrip)


class _Statistics(msgspec.Struct):
    msg_cnt: int = 0
    msg_size: int = 0
    txmsgs: int = 0
    txmsg_bytes: int = 0
    brokers: dict[str, _Broker] = {}


_decoder = msgspec.json.Decoder(_Statistics)


def essentials(text: str) -> dict[str, int]:
    """Pick the statistics that matter to a user.

    Args:
        text: JSON, see https://github.com/confluentinc/librdkafka/blob/master/STATISTICS.md.
    """
    said = _decoder.decode(text)
    brokers = [broker for broker in said.brokers.values() if broker.nodeid >= 0]
    return {
        "brokers_known": len(brokers),
        "brokers_up": sum(broker.state == "UP" for broker in brokers),
        "messages_queued": said.msg_cnt,
        "bytes_queued": said.msg_size,
        "messages_sent": said.txmsgs,
        "bytes_sent": said.txmsg_bytes,
        "requests_failed": sum(broker.txerrs for broker in brokers),
        "requests_retried": sum(broker.txretries for broker in brokers),
        "round_trip_p99_us": max((broker.rtt.p99 for broker in brokers), default=0),
    }

"""What errors of Kafka and librdkafka mean to an operator: one sentence to act on."""

from __future__ import annotations

import re

__all__ = ["TIMEOUT", "cleaned", "explain"]

TIMEOUT = "timeout"
"""The name of the error when neither the broker nor the client said anything."""

# librdkafka reports this as a refused login, although no broker was asked.
_NO_LOGIN = "no login"

# By librdkafka's names: protocol errors keep their names, its own errors begin with "_".
_MEANING = {
    TIMEOUT: "the broker did not answer in time",
    "_AUTHENTICATION": (
        "the broker refused the login: check sasl.mechanism, sasl.username, sasl.password or "
        "security.protocol in kafka.config or kafka.config_file"
    ),
    _NO_LOGIN: (
        "there is no token for the login: is its endpoint up, and are sasl.oauthbearer.* right, in "
        "kafka.config or kafka.config_file?"
    ),
    "_SSL": (
        "the TLS handshake with the broker failed: check ssl.ca.location, for mutual TLS "
        "ssl.certificate.location and ssl.key.location, in kafka.config or kafka.config_file, or "
        "the host's name in the broker's certificate"
    ),
    "_RESOLVE": (
        "a broker's host name is not known: check kafka.bootstrap_servers, or advertised.listeners "
        "of the broker"
    ),
    "_TRANSPORT": (
        "a broker does not answer: is it up, and does security.protocol suit its listener?"
    ),
    "_ALL_BROKERS_DOWN": (
        "no broker answers: is it up, is kafka.bootstrap_servers right, and does "
        "security.protocol suit its listener?"
    ),
    "_INVALID_ARG": "librdkafka refuses kafka.config or kafka.config_file",
    "TOPIC_AUTHORIZATION_FAILED": (
        "the user may not write to topic {topic}: allow it the operation Write on that topic"
    ),
    "CLUSTER_AUTHORIZATION_FAILED": (
        "the user may not write to topic {topic}, or to any: allow it the operation Write on "
        "the topics"
    ),
    "UNKNOWN_TOPIC_OR_PART": (
        "topic {topic} does not exist: create it, or let the broker create topics"
    ),
    "_UNKNOWN_TOPIC": "topic {topic} does not exist: create it, or let the broker create topics",
    "TOPIC_EXCEPTION": "the broker takes no records for {topic}: it is its own, or no topic's name",
    "MSG_SIZE_TOO_LARGE": (
        "a record is larger than the broker takes: raise max.message.bytes of topic {topic}, and "
        "message.max.bytes in kafka.config for one over 16 MiB"
    ),
    "INVALID_TIMESTAMP": (
        "the broker refuses a record's time in topic {topic}: check this machine's clock, or "
        "message.timestamp.before.max.ms and message.timestamp.after.max.ms of the topic"
    ),
    "INVALID_RECORD": (
        "the broker refuses a record of topic {topic} as invalid: is it compacted, which takes "
        "no record without a key?"
    ),
    "NOT_ENOUGH_REPLICAS": "topic {topic} has too few replicas in sync for kafka.acks",
}
_MEANING["RECORD_LIST_TOO_LARGE"] = _MEANING["MSG_SIZE_TOO_LARGE"]
_MEANING["NOT_ENOUGH_REPLICAS_AFTER_APPEND"] = _MEANING["NOT_ENOUGH_REPLICAS"]

_LONGEST_WORDS = 140
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def explain(name: str, words: str, topic: str) -> str:
    """Say in one sentence what an error means and what to fix.

    Args:
        name: librdkafka's name of the error.
        words: The client's or the broker's own words, which are cleaned and cut.
        topic: The topic that the records were for.

    Returns:
        A sentence without secrets or data.
    """
    is_ours = name == "_AUTHENTICATION" and "OAUTHBEARER token" in words
    meaning = _MEANING.get(_NO_LOGIN if is_ours else name, "the broker did not take the records")
    meaning = meaning.format(topic=topic)
    said = cleaned(words, _LONGEST_WORDS)
    return f"{meaning} ({name}: {said})" if said else meaning


def cleaned(words: str, length: int) -> str:
    """Return somebody else's words without control characters, cut to `length` characters."""
    return _CONTROL.sub(" ", words)[:length].strip()

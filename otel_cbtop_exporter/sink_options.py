"""The part of the configuration tree that is about sinks: a group of options for each.

Not here: what is the same for all of them (`config.py`, which offers these, too).
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from otel_cbtop_exporter.errors import ConfigError
from otel_cbtop_exporter.masking import PROPERTIES, SECRET, URL
from otel_cbtop_exporter.options import NotNegative, Options, WaitMs, absolute_path

__all__ = [
    "NOT_IN_TOPIC",
    "TOPIC_TAG",
    "ConsoleConfig",
    "InfluxDBConfig",
    "JsonLinesConfig",
    "KafkaConfig",
]

_Properties = Annotated[dict[str, str], PROPERTIES]

# No other braces: a misspelt placeholder would be a file of that name. And no NUL.
_FILE_PATTERN = r"^([^{}\x00]|\{(pid|date|hour)\})+\Z"


class JsonLinesConfig(Options, frozen=True, kw_only=True):
    """The JSON Lines file.

    Attributes:
        path: May contain `{pid}`, `{date}` and `{hour}`, and begin with `~`; `-` is standard
            output.
        max_bytes: Rotate a file that is larger; 0 disables rotation by size.
        max_age_ms: Rotate a file that is older; 0 disables rotation by age.
        max_files: How many rotated files to keep.
        compression: Of rotated files.
        fsync: `never`, after each `batch`, or (`interval`) at most once per `fsync_interval_ms`.
        fsync_interval_ms: For `fsync=interval`.
        mode: Permissions of new files, octal.
    """

    group: ClassVar[str] = "jsonlines"

    path: Annotated[
        str,
        Meta(
            pattern=_FILE_PATTERN,
            description="a path, in which {pid}, {date} and {hour} are all that may be in braces",
        ),
    ] = "cbtop-events.jsonl"
    max_bytes: NotNegative = 100 * 1024 * 1024
    max_age_ms: NotNegative = 0
    max_files: NotNegative = 5
    compression: Literal["none", "gzip", "zstd"] = "gzip"
    fsync: Literal["never", "batch", "interval"] = "never"
    fsync_interval_ms: WaitMs = 1_000
    mode: Annotated[
        str, Meta(pattern="^0?[0-7]{3}$", description="octal permissions, in quotes, like 0640")
    ] = "0640"

    def __post_init__(self) -> None:
        super().__post_init__()
        absolute_path("jsonlines.path", self.path)  # only looked at: it is shown as it was given


class ConsoleConfig(Options, frozen=True, kw_only=True):
    """The console.

    Attributes:
        stream: Where to write.
    """

    group: ClassVar[str] = "console"

    stream: Literal["stdout", "stderr"] = "stdout"


class InfluxDBConfig(Options, frozen=True, kw_only=True):
    """An InfluxDB, or whatever speaks its `/api/v2/write`.

    Attributes:
        url: For example `http://localhost:8086`. Credentials go into `token`, not in here.
        org: Organization; leave it unset for InfluxDB 1.8.
        bucket: May contain `{signal}`, which becomes `metrics`, `spans` or `logs`. For InfluxDB
            1.8 `database` or `database/retention-policy`.
        token: API token; for InfluxDB 1.8 `username:password`.
        token_file: A file that contains the token; read again when the server refuses it.
        timeout_ms: Of one request.
        ca_file: PEM file of the CA that signed the server's certificate.
        cert_file: PEM file of the client certificate.
        key_file: PEM file of its key, if that is not in `cert_file`.
        verify_tls: Whether to check the server's certificate.
        headers: Extra request headers.
        gzip: Whether to compress requests.
        trace_id_tag_digits: How many leading hex digits of the trace id become a tag, to find
            traces over days. Each digit multiplies the number of series by 16.
    """

    group: ClassVar[str] = "influxdb"

    url: (
        Annotated[
            str,
            Meta(
                pattern="^https?://[^@]+$",
                description="an address like http://localhost:8086, without a login (see token)",
            ),
            URL,
        ]
        | None
    ) = None
    org: str | None = None
    bucket: (
        Annotated[
            str,
            Meta(
                pattern=r"^([^{}]|\{signal\})+\Z",
                description="a bucket's name, in which {signal} is all that may be in braces",
            ),
        ]
        | None
    ) = None
    token: Annotated[str, SECRET] | None = None
    token_file: str | None = None
    timeout_ms: WaitMs = 10_000
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify_tls: bool = True
    headers: Annotated[dict[str, str], SECRET] = msgspec.field(default_factory=dict)
    gzip: bool = True
    trace_id_tag_digits: Annotated[int, Meta(ge=0, le=2)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            parts = urlsplit(self.url or "http://host")
            is_address = bool(parts.hostname) and parts.port != 0
            # 1.x's users may have a login there, which would be left out without a word.
            is_address = is_address and not (parts.query or parts.fragment)
        except ValueError:  # such as a port that is none, or half of an IPv6 address
            is_address = False
        if not is_address:
            raise ConfigError(
                f"influxdb.url is {re.split('[?#]', self.url or '')[0]!r} and what is behind it: "
                "expected an address like http://localhost:8086, without a query"
            )


TOPIC_TAG = re.compile(r"\{([^{}]+)\}")
"""What stands in braces in `kafka.topic`: `signal`, or the name of a tag."""

NOT_IN_TOPIC = re.compile(r"[^A-Za-z0-9._-]")
"""What no topic may hold: https://kafka.apache.org/documentation/#brokerconfigs"""


class KafkaConfig(Options, frozen=True, kw_only=True):
    """A Kafka cluster.

    Attributes:
        bootstrap_servers: `host:port`, several separated by commas; a login goes into `config` or
            `config_file`.
        topic: `{signal}` becomes `metrics`, `spans` or `logs`; other names in braces are resource
            attributes, for example `{service.name}`, or other tags of the event.
        acks: Replicas that must have a record before it counts as delivered.
        compression: Of record batches.
        linger_ms: How long librdkafka waits to fill a record batch within a write; the last batch
            of a write is sent at once.
        headers: Headers of every message.
        event_headers: Add the headers `schema_version`, `content-type` and, for spans, their
            events and links, W3C `traceparent`.
        config: Any librdkafka property; wins over ours.
        config_file: A file of librdkafka properties, one `key=value` per line; wins over `config`.
            It is read again when the broker refuses the login.
        schema_registry_url: Encode values for this Confluent Schema Registry. A login goes into
            `schema_registry_config`, not in here.
        schema_registry_config: Any property of the registry's client, for example
            `basic.auth.user.info`, and `auto.register.schemas`.
    """

    group: ClassVar[str] = "kafka"

    bootstrap_servers: (
        Annotated[
            str,
            Meta(
                pattern=r"^[^@]*\Z",
                description="host:port, without a login (see sasl.username of kafka.config)",
            ),
            URL,
        ]
        | None
    ) = None
    topic: Annotated[str, Meta(min_length=1)] = "otel.{signal}"
    acks: Literal["all", "1", "0", "-1"] = "all"
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "zstd"
    # librdkafka refuses to start unless it is below message.timeout.ms, by default five minutes.
    linger_ms: Annotated[int, Meta(ge=0, le=299_999)] = 50
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    event_headers: bool = False
    config: _Properties = msgspec.field(default_factory=dict)
    config_file: str | None = None
    schema_registry_url: (
        Annotated[
            str,
            Meta(
                pattern=r"^https?://[^@?#]*\Z",
                description="an address like http://localhost:8081, without a query or a login "
                "(see basic.auth.user.info of kafka.schema_registry_config)",
            ),
            URL,
        ]
        | None
    ) = None
    schema_registry_config: _Properties = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := NOT_IN_TOPIC.search(TOPIC_TAG.sub("", self.topic)):
            raise ConfigError(
                f"kafka.topic is {self.topic!r}: {wrong.group()!r} cannot be in a topic's name; "
                "allowed are letters, digits, '.', '_', '-' and names of tags in braces"
            )

"""The configuration tree: every option of the package, with its default and its limits.

One tree, three spellings: keyword arguments, a declarative configuration file, and
environment variables whose names `env.py` derives from this tree. Validation is in the
constructors, so no invalid configuration exists. Durations are milliseconds everywhere, as
OpenTelemetry has it in the environment. Secrets are masked in every repr.
"""

from __future__ import annotations

import glob
import re
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from otel_cbtop_exporter.errors import ConfigError
from otel_cbtop_exporter.options import SECRET, Options

__all__ = [
    "DEFAULT_RESOURCE_TAGS",
    "DEFAULT_SPAN_TAGS",
    "TOPIC_TAG",
    "ConsoleConfig",
    "ExporterConfig",
    "InfluxDBConfig",
    "JsonLinesConfig",
    "KafkaConfig",
    "MappingConfig",
    "RetryConfig",
    "SpoolConfig",
]

DEFAULT_RESOURCE_TAGS = (
    "service.*",
    "deployment.environment*",
    "host.name",
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.node.name",
    "container.id",
    "cloud.region",
)

# Low-cardinality attributes of the semantic conventions, new names and old. Never ids, URLs,
# SQL or addresses: as tags each value would be a series of its own.
DEFAULT_SPAN_TAGS = (
    "http.request.method",
    "http.method",
    "http.route",
    "http.response.status_code",
    "http.status_code",
    "rpc.system",
    "rpc.service",
    "rpc.method",
    "db.system.name",
    "db.system",
    "db.operation.name",
    "db.collection.name",
    "messaging.system",
    "messaging.operation.type",
    "messaging.destination.name",
    "error.type",
)

# No other braces: a misspelt placeholder would be a file of that name. And no NUL.
_FILE_PATTERN = r"^([^{}\x00]|\{(pid|date|hour)\})+\Z"


_AtLeastOne = Annotated[int, Meta(ge=1)]
_NotNegative = Annotated[int, Meta(ge=0)]
_Names = tuple[str, ...]


class RetryConfig(Options, frozen=True, kw_only=True):
    """How long to wait before records are tried again: exponential, with full jitter.

    Attributes:
        max_retries: Tries after the first on a direct send; the drain thread tries for as
            long as it takes.
        initial_delay_ms: Upper bound of the first wait.
        max_delay_ms: No wait of ours is longer; a longer Retry-After is respected.
        multiplier: Growth of the bound from one try to the next.
    """

    group: ClassVar[str] = "retry"

    max_retries: _NotNegative = 3
    initial_delay_ms: _AtLeastOne = 100
    max_delay_ms: _AtLeastOne = 10_000
    multiplier: Annotated[float, Meta(ge=1)] = 2.0

    def delay_for_attempt(self, attempt: int) -> float:
        """Return the bound of the wait after a number of failed tries, before jitter.

        Args:
            attempt: Retries already made, from 0.

        Returns:
            Milliseconds, never above `max_delay_ms`, for any attempt.
        """
        # 2.0 ** 1024 overflows a float, and by then the maximum is reached long since.
        try:
            grown = self.initial_delay_ms * self.multiplier**attempt
        except OverflowError:
            return self.max_delay_ms
        return min(grown, self.max_delay_ms)


class SpoolConfig(Options, frozen=True, kw_only=True):
    """Where records wait for a remote sink.

    Attributes:
        path: A folder for spool files, which then survive the process; in memory if unset.
        max_bytes: Compressed bytes that may wait; by default 64 MiB in memory, 1 GiB in a
            folder (over all files of it).
        max_age_ms: Records older than this leave the spool, counted; 0 keeps them.
        synchronous: `normal` survives a killed process, `full` a power cut as well.
    """

    group: ClassVar[str] = "spool"

    path: str | None = None
    max_bytes: Annotated[int, Meta(ge=1_048_576)] | None = None
    max_age_ms: _NotNegative = 0
    synchronous: Literal["normal", "full"] = "normal"


class MappingConfig(Options, frozen=True, kw_only=True):
    """How SDK data becomes events.

    Attributes:
        resource_tags: Glob patterns of the resource attributes that become tags.
        span_tags: Span attributes that become tags.
        exemplars: Which metrics' exemplars are exported.
        redact: Glob patterns of attribute keys whose values become `[redacted]`.
    """

    group: ClassVar[str] = "mapping"

    resource_tags: _Names = DEFAULT_RESOURCE_TAGS
    span_tags: _Names = DEFAULT_SPAN_TAGS
    exemplars: Literal["histograms", "all", "none"] = "histograms"
    redact: _Names = ()


class JsonLinesConfig(Options, frozen=True, kw_only=True):
    """The JSON Lines file.

    Attributes:
        path: May hold `{pid}`, `{date}`, `{hour}` and `~`; `-` is standard output.
        max_bytes: A larger file is rotated; 0 never rotates by size.
        max_age_ms: An older file is rotated; 0 never rotates by age.
        max_files: Rotated files that are kept.
        compression: Of rotated files.
        fsync: `never`, after each `batch`, or at most once in `fsync_interval_ms`.
        fsync_interval_ms: With `fsync=interval`.
        mode: Permissions of new files, octal.
    """

    group: ClassVar[str] = "jsonlines"

    path: Annotated[str, Meta(pattern=_FILE_PATTERN)] = "cbtop-events.jsonl"
    max_bytes: _NotNegative = 100 * 1024 * 1024
    max_age_ms: _NotNegative = 0
    max_files: _NotNegative = 5
    compression: Literal["none", "gzip", "zstd"] = "gzip"
    fsync: Literal["never", "batch", "interval"] = "never"
    fsync_interval_ms: _AtLeastOne = 1_000
    mode: Annotated[str, Meta(pattern="^0?[0-7]{3}$")] = "0640"


class ConsoleConfig(Options, frozen=True, kw_only=True):
    """The console.

    Attributes:
        stream: Standard output or standard error.
    """

    group: ClassVar[str] = "console"

    stream: Literal["stdout", "stderr"] = "stdout"


class InfluxDBConfig(Options, frozen=True, kw_only=True):
    """An InfluxDB, or whatever speaks its `/api/v2/write`.

    Attributes:
        url: For example `http://localhost:8086`; without a login, which is what `token` is for.
        org: Organization; leave it unset for InfluxDB 1.8.
        bucket: `{signal}` in it becomes `metrics`, `spans` or `logs`. For InfluxDB 1.8
            `database` or `database/retention-policy`.
        token: API token; for InfluxDB 1.8 `username:password`.
        token_file: A file that holds the token; read again when the server refuses it.
        timeout_ms: Of one request.
        ca_file: PEM file of the authority that signed the server's certificate.
        cert_file: PEM file of the client's certificate.
        key_file: PEM file of its key, if that is not in `cert_file`.
        verify_tls: Whether the server's certificate is checked.
        headers: Extra request headers.
        gzip: Whether requests are compressed.
        trace_id_tag_digits: First hex digits of the trace id that become a tag, for looking
            traces up over days; one digit means 16 times the series.
    """

    group: ClassVar[str] = "influxdb"

    url: Annotated[str, Meta(pattern="^https?://[^@]+$")] | None = None
    org: str | None = None
    bucket: str | None = None
    token: Annotated[str, SECRET] | None = None
    token_file: str | None = None
    timeout_ms: _AtLeastOne = 10_000
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify_tls: bool = True
    headers: Annotated[dict[str, str], SECRET] = msgspec.field(default_factory=dict)
    gzip: bool = True
    trace_id_tag_digits: Annotated[int, Meta(ge=0, le=2)] = 0


TOPIC_TAG = re.compile(r"\{([^{}]+)\}")
"""What stands in braces in `kafka.topic`: `signal`, or the name of a tag."""


class KafkaConfig(Options, frozen=True, kw_only=True):
    """A Kafka cluster.

    Attributes:
        bootstrap_servers: `host:port`, several separated by commas.
        topic: `{signal}` becomes `metrics`, `spans` or `logs`; other names in braces are resource
            attributes, for example `{service.name}`, or other tags of the event.
        acks: Replicas that must have a record before it counts as delivered.
        compression: Of record batches.
        linger_ms: How long librdkafka waits to fill a record batch.
        headers: Headers of every message.
        event_headers: Whether `schema_version`, `content-type` and, for spans, W3C
            `traceparent` become headers too.
        config: Any librdkafka property, over ours.
        config_file: A file of librdkafka properties, one `key=value` a line, over `config`;
            read again when the broker refuses the login.
        schema_registry_url: Frame values for a Confluent Schema Registry.
        schema_registry_config: Any property of its client, for example
            `basic.auth.user.info`.
    """

    group: ClassVar[str] = "kafka"

    bootstrap_servers: str | None = None
    topic: Annotated[str, Meta(min_length=1)] = "otel.{signal}"
    acks: Literal["all", "1", "0"] = "all"
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "zstd"
    linger_ms: _NotNegative = 50
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    event_headers: bool = False
    config: Annotated[dict[str, str], SECRET] = msgspec.field(default_factory=dict)
    config_file: str | None = None
    schema_registry_url: Annotated[str, Meta(pattern="^https?://")] | None = None
    schema_registry_config: Annotated[dict[str, str], SECRET] = msgspec.field(default_factory=dict)


class ExporterConfig(Options, frozen=True, kw_only=True):
    """Everything an exporter can be told.

    Attributes:
        sink: Where events go; several means every one of them gets every event.
        delivery: `spooled`: remote sinks are written by a thread of ours, from the spool.
            `direct`: on the SDK's thread, for places that freeze between calls.
        timeout_ms: The longest that one `export()` may take.
        max_batch_events: The most records in one write; the sink's own default if unset.
        max_batch_bytes: The most bytes in one write; the sink's own default if unset.
        internal_metrics: Record OpenTelemetry's metrics about exporters, `otel.sdk.exporter.*`.
        exit_on_sigterm: Install a handler that exits cleanly where SIGTERM would kill the
            process with its queues.
        temporality_preference: `delta`, `cumulative` or `lowmemory`, with OpenTelemetry's
            meanings.
        default_histogram_aggregation: The aggregation of histograms without a view.
    """

    sink: tuple[Literal["jsonlines", "influxdb", "kafka", "console", "none"], ...] = ("jsonlines",)
    delivery: Literal["spooled", "direct"] = "spooled"
    timeout_ms: _AtLeastOne = 10_000
    max_batch_events: _AtLeastOne | None = None
    max_batch_bytes: _AtLeastOne | None = None
    internal_metrics: bool = False
    exit_on_sigterm: bool = False
    temporality_preference: Literal["delta", "cumulative", "lowmemory"] = "delta"
    default_histogram_aggregation: Literal[
        "explicit_bucket_histogram", "base2_exponential_bucket_histogram"
    ] = "explicit_bucket_histogram"
    mapping: MappingConfig = msgspec.field(default_factory=MappingConfig)
    retry: RetryConfig = msgspec.field(default_factory=RetryConfig)
    spool: SpoolConfig = msgspec.field(default_factory=SpoolConfig)
    jsonlines: JsonLinesConfig = msgspec.field(default_factory=JsonLinesConfig)
    console: ConsoleConfig = msgspec.field(default_factory=ConsoleConfig)
    influxdb: InfluxDBConfig = msgspec.field(default_factory=InfluxDBConfig)
    kafka: KafkaConfig = msgspec.field(default_factory=KafkaConfig)

    def __post_init__(self) -> None:
        if isinstance(self.sink, str):
            msgspec.structs.force_setattr(
                self, "sink", tuple(name.strip() for name in self.sink.split(",") if name.strip())
            )
        super().__post_init__()
        if not self.sink or (len(self.sink) > 1 and "none" in self.sink):
            raise ConfigError(
                f"sink must name one or several of jsonlines, influxdb, kafka, console, "
                f"or be none alone, got {', '.join(self.sink) or 'nothing'}"
            )
        if len(set(self.sink)) < len(self.sink):
            raise ConfigError(f"sink names one sink twice: {', '.join(self.sink)}")
        if "kafka" in self.sink:
            named = set(TOPIC_TAG.findall(self.kafka.topic)) - {"signal"}
            tags = (*self.mapping.resource_tags, *map(glob.escape, sorted(named)))
            mapping = msgspec.structs.replace(self.mapping, resource_tags=tags)
            msgspec.structs.force_setattr(self, "mapping", mapping)

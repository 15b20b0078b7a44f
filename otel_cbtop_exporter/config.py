"""The configuration tree: every option of the package, with its default and its limits.

One tree, three spellings: keyword arguments, a declarative configuration file, and
environment variables whose names `env.py` derives from this tree. Validation is in the
constructors, so no invalid configuration exists. Durations are milliseconds everywhere, as
OpenTelemetry has it in the environment. Secrets are masked in every repr.
"""

from __future__ import annotations

import glob
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from otel_cbtop_exporter.errors import ConfigError
from otel_cbtop_exporter.options import (
    AtLeastOne,
    NotNegative,
    Options,
    WaitMs,
    absolute_path,
)
from otel_cbtop_exporter.sink_options import (
    TOPIC_TAG,
    ConsoleConfig,
    InfluxDBConfig,
    JsonLinesConfig,
    KafkaConfig,
)

__all__ = [
    "DEFAULT_RESOURCE_TAGS",
    "DEFAULT_SPAN_TAGS",
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
    "k8s.cluster.name",
    "k8s.namespace.name",
    "k8s.deployment.name",
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
    "rpc.system.name",
    "rpc.system",
    "rpc.service",
    "rpc.method",
    "rpc.response.status_code",
    "db.system.name",
    "db.system",
    "db.operation.name",
    "db.operation",
    "db.collection.name",
    "messaging.system",
    "messaging.operation.type",
    "messaging.operation",
    "messaging.destination.name",
    "error.type",
)

_Names = tuple[str, ...]


class RetryConfig(Options, frozen=True, kw_only=True):
    """How long to wait before records are tried again: exponential, with full jitter.

    Attributes:
        max_retries: Retries of a direct send; from the spool, records are retried for as long as
            it takes.
        initial_delay_ms: Upper bound of the first wait.
        max_delay_ms: Upper bound of every wait; a longer Retry-After is respected.
        multiplier: Growth of the bound from one retry to the next.
    """

    group: ClassVar[str] = "retry"

    max_retries: NotNegative = 3
    initial_delay_ms: WaitMs = 100
    max_delay_ms: WaitMs = 10_000
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
        path: A folder for spool files, which survive the process; may begin with `~`. If unset,
            the spool is in memory.
        max_bytes: Compressed bytes that may wait, at least 1 MiB. The default is 64 MiB in memory,
            1 GiB in a folder (for all of its files together).
        max_age_ms: Drop (and count) records that have waited for longer; 0 keeps them.
        synchronous: `normal` survives a killed process, `full` a power cut as well.
    """

    group: ClassVar[str] = "spool"

    path: Annotated[str, Meta(pattern=r"^[^\x00]+\Z", description="a path")] | None = None
    max_bytes: Annotated[int, Meta(ge=1_048_576, le=2**63 - 1)] | None = None
    max_age_ms: NotNegative = 0
    synchronous: Literal["normal", "full"] = "normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None:
            msgspec.structs.force_setattr(self, "path", absolute_path("spool.path", self.path))


class MappingConfig(Options, frozen=True, kw_only=True):
    """How SDK data becomes events.

    Attributes:
        resource_tags: Glob patterns of the resource attributes that become tags; the others are
            left out. `*` takes all of them.
        span_tags: Span attributes that become tags.
        exemplars: Which metrics' exemplars to export.
        redact: Glob patterns of attribute keys whose values become `[redacted]`.
    """

    group: ClassVar[str] = "mapping"

    resource_tags: _Names = DEFAULT_RESOURCE_TAGS
    span_tags: _Names = DEFAULT_SPAN_TAGS
    exemplars: Literal["histograms", "all", "none"] = "histograms"
    redact: _Names = ()


class ExporterConfig(Options, frozen=True, kw_only=True):
    """Everything an exporter can be told.

    Attributes:
        sink: Where events go. Each of several sinks gets every event.
        delivery: `spooled`: a background thread writes to remote sinks, from the spool.
            `direct`: the SDK's thread does, for environments that freeze between calls.
        timeout_ms: The longest that one `export()` may take; several sinks have equal shares of it.
        max_batch_events: The most records in one write; each sink has a default of its own.
        max_batch_bytes: The most bytes in one write; each sink has a default of its own.
        internal_metrics: Record OpenTelemetry's metrics about exporters, `otel.sdk.exporter.*`.
        exit_on_sigterm: Exit cleanly on SIGTERM, which would otherwise kill the process with its
            queues.
        temporality_preference: As OpenTelemetry defines the three.
        default_histogram_aggregation: The aggregation of histograms without a view.
    """

    sink: tuple[Literal["jsonlines", "influxdb", "kafka", "console", "none"], ...] = ("jsonlines",)
    delivery: Literal["spooled", "direct"] = "spooled"
    timeout_ms: WaitMs = 10_000
    max_batch_events: AtLeastOne | None = None
    max_batch_bytes: AtLeastOne | None = None
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
        super().__post_init__()
        if not self.sink or (len(self.sink) > 1 and "none" in self.sink):
            raise ConfigError(
                f"sink must name one or several of jsonlines, influxdb, kafka, console, "
                f"or be none alone, got {', '.join(self.sink) or 'nothing'}"
            )
        if len(set(self.sink)) < len(self.sink):
            raise ConfigError(f"sink names one sink twice: {', '.join(self.sink)}")

    @property
    def all_resource_tags(self) -> tuple[str, ...]:
        """Patterns of the resource attributes that become tags; the topic's are among them."""
        if "kafka" not in self.sink:
            return self.mapping.resource_tags
        named = set(TOPIC_TAG.findall(self.kafka.topic)) - {"signal"}
        return (*self.mapping.resource_tags, *map(glob.escape, sorted(named)))

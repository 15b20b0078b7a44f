"""The configuration tree: every option of the package, with its default and its limits.

One tree, three spellings: keyword arguments, a declarative configuration file, and
environment variables whose names `env.py` derives from this tree. Validation is in the
constructors, so no invalid configuration exists. Durations are milliseconds everywhere, as
OpenTelemetry has it in the environment. Secrets are masked in every repr.
"""

from __future__ import annotations

import difflib
import functools
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from otel_cbtop_exporter.errors import ConfigError

__all__ = [
    "DEFAULT_RESOURCE_TAGS",
    "DEFAULT_SPAN_TAGS",
    "ConsoleConfig",
    "ExporterConfig",
    "InfluxDBConfig",
    "JsonLinesConfig",
    "KafkaConfig",
    "MappingConfig",
    "Options",
    "RetryConfig",
    "SpoolConfig",
    "build",
    "is_group",
    "is_secret",
    "merged",
    "option_types",
    "parse_text",
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

_MASK = "********"
_SECRET = Meta(extra={"secret": True})

_AtLeastOne = Annotated[int, Meta(ge=1)]
_NotNegative = Annotated[int, Meta(ge=0)]
_Names = tuple[str, ...]
_O = TypeVar("_O", bound="Options")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A group of options, checked when it is made.

    Raises:
        ConfigError: A value has the wrong type or is outside its limits.
    """

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in option_types(type(self)).items():
            value = getattr(self, name)
            if is_group(hint):
                if not isinstance(value, hint):
                    msgspec.structs.force_setattr(self, name, build(hint, value))
                continue
            try:
                checked = msgspec.convert(value, hint)
            except msgspec.ValidationError as error:
                raise _wrong(self.group, name, hint, value, error) from None
            msgspec.structs.force_setattr(self, name, checked)

    def __repr__(self) -> str:
        hints = option_types(type(self))
        parts = (f"{name}={_shown(hint, getattr(self, name))}" for name, hint in hints.items())
        return f"{type(self).__name__}({', '.join(parts)})"


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
        url: For example `http://localhost:8086`.
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

    url: Annotated[str, Meta(pattern="^https?://")] | None = None
    org: str | None = None
    bucket: str | None = None
    token: Annotated[str, _SECRET] | None = None
    token_file: str | None = None
    timeout_ms: _AtLeastOne = 10_000
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify_tls: bool = True
    headers: Annotated[dict[str, str], _SECRET] = {}
    gzip: bool = True
    trace_id_tag_digits: Annotated[int, Meta(ge=0, le=2)] = 0


class KafkaConfig(Options, frozen=True, kw_only=True):
    """A Kafka cluster.

    Attributes:
        bootstrap_servers: `host:port`, several separated by commas.
        topic: `{signal}` becomes `metrics`, `spans` or `logs`; other names in braces are the
            event's tags, for example `{service.name}`.
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
    headers: dict[str, str] = {}
    event_headers: bool = False
    config: Annotated[dict[str, str], _SECRET] = {}
    config_file: str | None = None
    schema_registry_url: Annotated[str, Meta(pattern="^https?://")] | None = None
    schema_registry_config: Annotated[dict[str, str], _SECRET] = {}


class ExporterConfig(Options, frozen=True, kw_only=True):
    """Everything an exporter can be told.

    Attributes:
        sink: Where events go; several means every one of them gets every event.
        delivery: `spooled`: remote sinks are written by a thread of ours, from the spool.
            `direct`: on the SDK's thread, for places that freeze between calls.
        timeout_ms: The longest that one `export()` may take.
        max_batch_events: The most records in one write; the sink's own default if unset.
        max_batch_bytes: The most bytes in one write; the sink's own default if unset.
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
            msgspec.structs.force_setattr(self, "sink", _split(self.sink))
        super().__post_init__()
        if not self.sink or (len(self.sink) > 1 and "none" in self.sink):
            raise ConfigError(
                f"sink must name one or several of jsonlines, influxdb, kafka, console, "
                f"or be none alone, got {', '.join(self.sink) or 'nothing'}"
            )
        if len(set(self.sink)) < len(self.sink):
            raise ConfigError(f"sink names one sink twice: {', '.join(self.sink)}")


def build(cls: type[_O], values: Mapping[str, Any] | None) -> _O:
    """Make options from plain values, as a keyword argument or a configuration file has them.

    Args:
        cls: Which group.
        values: Option names and values; groups may be mappings; None and `{}` (which a null
            in a declarative file becomes) stand for the defaults.

    Raises:
        ConfigError: An option is unknown, or its value is not allowed.
    """
    if not isinstance(values, Mapping | None):
        raise ConfigError(f"{cls.group} must be a mapping of its options, got {values!r}")
    hints = option_types(cls)
    given: dict[str, Any] = {}
    for name, value in (values or {}).items():
        if name not in hints:
            nearest = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"; did you mean {_dotted(cls.group, nearest[0])}?" if nearest else ""
            raise ConfigError(f"there is no option {_dotted(cls.group, str(name))}{hint}")
        if value is not None and not (value == {} and not _holds_mapping(hints[name])):
            given[name] = value
    return cls(**given)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay options over others, group by group; None and `{}` leave what is below."""
    result = dict(below)
    for name, value in above.items():
        if value is None or value == {}:
            result.setdefault(name, value)
            continue
        if isinstance(value, Options):
            value = msgspec.structs.asdict(value)  # noqa: PLW2901  a group, ready made
        under = result.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = merged(under, value)  # noqa: PLW2901  the group that it makes
        result[name] = value
    return result


@functools.cache
def option_types(cls: type[Options]) -> dict[str, Any]:
    """Return the options of a group and their types, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in cls.__struct_fields__}


def parse_text(hint: Any, text: str) -> Any:
    """Read an option from an environment variable.

    Lists are separated by commas; mappings are `key=value`, separated by commas.

    Raises:
        ValueError: The text does not fit; the message says what was expected.
    """
    value: Any = text
    if _holds_mapping(hint):
        pairs = [part.partition("=") for part in _split(text)]
        if any(not separator for _, separator, _ in pairs):
            raise ValueError("expected key=value,key=value")
        value = {key.strip(): part.strip() for key, _, part in pairs}
    elif typing.get_origin(_bare(hint)) is tuple:
        value = _split(text)
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(_expectation(hint, error)) from None


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _bare(hint: Any) -> Any:
    """Strip Annotated and `| None`."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    args = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if type(None) in typing.get_args(hint) and len(args) == 1:
        return _bare(args[0])
    return hint


def _holds_mapping(hint: Any) -> bool:
    return typing.get_origin(_bare(hint)) is dict


def is_group(hint: Any) -> bool:
    """Say whether an option's type is a group of options."""
    return isinstance(hint, type) and issubclass(hint, Options)


def is_secret(hint: Any) -> bool:
    """Say whether an option's value must never be shown."""
    if typing.get_origin(hint) is Annotated and _SECRET in typing.get_args(hint):
        return True
    return any(is_secret(arg) for arg in typing.get_args(hint))


def _shown(hint: Any, value: Any) -> str:
    if not value or not is_secret(hint):
        return repr(value)
    if isinstance(value, Mapping):
        return repr(dict.fromkeys(value, _MASK))
    return repr(_MASK)


def _expectation(hint: Any, error: msgspec.ValidationError) -> str:
    """Say what is allowed; msgspec does not list the words of a Literal."""
    bare = _bare(hint)
    if typing.get_origin(bare) is tuple:
        bare = _bare(typing.get_args(bare)[0])
    if typing.get_origin(bare) is Literal:
        return f"expected one of {', '.join(typing.get_args(bare))}"
    text = str(error).partition(" - at ")[0]
    return text[:1].lower() + text[1:]


def _wrong(
    group: str, name: str, hint: Any, value: Any, error: msgspec.ValidationError
) -> ConfigError:
    return ConfigError(
        f"{_dotted(group, name)} is {_shown(hint, value)}: {_expectation(hint, error)}"
    )


def _dotted(group: str, name: str) -> str:
    return f"{group}.{name}" if group else name

"""The prefix that marks a value as having a schema in a Confluent Schema Registry.

Only Confluent's registry client is used, not its serializer, which would validate each event
again as a dict. Our values are JSON of that schema already.
"""

from __future__ import annotations

import importlib.resources
import math
from typing import Any

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from otel_cbtop_exporter.config import KafkaConfig
from otel_cbtop_exporter.errors import SinkError
from otel_cbtop_exporter.events import SCHEMA_VERSION
from otel_cbtop_exporter.sinks.kafka_causes import cleaned
from otel_cbtop_exporter.sinks.kafka_properties import read_registry_config

__all__ = ["SchemaRegistry"]

_MAGIC = b"\0"
# Confluent's serializers use this name; "false" means to look the schema up and not register it.
_AUTO_REGISTER = "auto.register.schemas"
_PUBLISHED_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REGISTERED_DIALECT = "http://json-schema.org/draft-07/schema#"
_LONGEST_REQUEST_SECONDS = 5.0
_LONGEST_WORDS = 120

# The properties that the client takes as numbers; others stay text, even a password of digits.
_NUMBERS = frozenset(
    {
        "cache.capacity",
        "cache.latest.ttl.sec",
        "max.retries",
        "retries.max.wait.ms",
        "retries.wait.ms",
        "timeout",
    }
)


class SchemaRegistry:
    """Registers the event's JSON Schema under each topic's subject, once per process.

    Thread-safe; if two threads are the first at once, both register and get the same id.

    Args:
        options: `schema_registry_url`, `schema_registry_config` and `config_file` are read.
    """

    def __init__(self, options: KafkaConfig) -> None:
        self._options = options
        self._prefixes: dict[str, bytes] = {}

    def prefix(self, topic: str, timeout_seconds: float) -> bytes:
        """Return the prefix of each value of a topic; the first call asks the registry.

        Raises:
            SinkError: The registry cannot be reached or refuses the schema, a client property that
                must be a number is not, or the file cannot be read.
        """
        prefix = self._prefixes.get(topic)
        if prefix is None:
            schema_id = self._register(f"{topic}-value", timeout_seconds)
            prefix = self._prefixes[topic] = _MAGIC + schema_id.to_bytes(4, "big")
        return prefix

    def _config(self) -> tuple[dict[str, Any], bool]:
        """Read the client's properties again, and whether it may register the schema."""
        given = read_registry_config(self._options)
        may_register = given.pop(_AUTO_REGISTER, "true").lower() != "false"
        config = {n: _number(n, text) if n in _NUMBERS else text for n, text in given.items()}
        # No retries here: only delivery retries.
        return {"max.retries": 0, **config, "url": self._options.schema_registry_url}, may_register

    def _register(self, subject: str, timeout_seconds: float) -> int:
        config, may_register = self._config()
        package = importlib.resources.files("otel_cbtop_exporter")
        schema = package.joinpath(f"schemas/event_v{SCHEMA_VERSION}.json").read_text("utf-8")
        # The schema uses nothing newer than draft 7, and draft 7 is the newest dialect that
        # registries with the everit library, such as Apicurio's, can compare.
        schema = schema.replace(_PUBLISHED_DIALECT, _REGISTERED_DIALECT)
        # httpx applies the timeout to connecting and to reading separately.
        seconds = min(timeout_seconds / 2, _LONGEST_REQUEST_SECONDS)
        try:
            with SchemaRegistryClient({"timeout": seconds, **config}) as client:
                wanted = Schema(schema, "JSON")
                if may_register:
                    return int(client.register_schema(subject, wanted))
                return int(client.lookup_schema(subject, wanted).schema_id)
        except SchemaRegistryError as error:
            if error.http_status_code == 409:
                meaning = (
                    f"the schema registry holds another schema for {subject}, which the event's "
                    "is not compatible with: set the subject's compatibility, or delete it"
                )
            elif not may_register and error.http_status_code == 404:
                meaning = f"the schema registry does not hold the event's schema for {subject}"
            else:
                meaning = f"the schema registry refuses the event's schema for {subject}"
            words = f"{error.http_status_code}: {cleaned(error.error_message, _LONGEST_WORDS)}"
            raise SinkError(f"{meaning} ({words})") from None
        except ValueError as error:
            # Unknown names are safe to show; other messages may hold the values given.
            names = str(error).partition("Unrecognized properties: ")[2]
            why = f"it knows no {names}" if names else "ValueError"
            raise SinkError(
                f"the schema registry cannot be asked: check kafka.schema_registry_config ({why})"
            ) from None
        # The HTTP client has its own hierarchy of errors. Their messages are not shown: they may
        # hold anything, such as an address that carries a password.
        except Exception as error:  # noqa: BLE001
            raise SinkError(
                f"the schema registry cannot be asked ({type(error).__name__}): is it up, and are "
                "kafka.schema_registry_url and kafka.schema_registry_config right?"
            ) from None


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SinkError(f"the schema registry's {name} is not a number")
    return number

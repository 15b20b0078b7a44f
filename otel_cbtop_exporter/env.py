"""The only reader of os.environ: environment variables as options, and the proxy.

Variable names are derived from the configuration tree: the option `kafka.bootstrap_servers` is
`OTEL_EXPORTER_CBTOP_KAFKA_BOOTSTRAP_SERVERS`. With `TRACES_`, `METRICS_` or `LOGS_` after the
prefix, a variable sets the option for one signal.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.errors import ConfigError
from otel_cbtop_exporter.masking import shown
from otel_cbtop_exporter.options import (
    Options,
    build,
    is_group,
    merged,
    nearest,
    option_types,
    parse_text,
)

__all__ = [
    "FALLBACKS",
    "PREFIX",
    "SignalName",
    "configuration",
    "declarative_file",
    "options_from_environment",
    "options_of_signal_alone",
    "proxy_for",
    "variables",
]

PREFIX = "OTEL_EXPORTER_CBTOP_"

SignalName = Literal["traces", "metrics", "logs"]

_SIGNAL_PREFIXES = tuple(f"{PREFIX}{name.upper()}_" for name in get_args(SignalName))

# Variables of influxdb-client and of the SDK, for options that are not set under our own names.
FALLBACKS: dict[str, tuple[str, ...]] = {
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": ("internal_metrics",),
    "INFLUXDB_V2_URL": ("influxdb", "url"),
    "INFLUXDB_V2_ORG": ("influxdb", "org"),
    "INFLUXDB_V2_TOKEN": ("influxdb", "token"),
    "INFLUXDB_V2_TIMEOUT": ("influxdb", "timeout_ms"),
    "INFLUXDB_V2_VERIFY_SSL": ("influxdb", "verify_tls"),
    "INFLUXDB_V2_SSL_CA_CERT": ("influxdb", "ca_file"),
    "INFLUXDB_V2_CERT_FILE": ("influxdb", "cert_file"),
    "INFLUXDB_V2_CERT_KEY_FILE": ("influxdb", "key_file"),
}

_logger = logging.getLogger("otel_cbtop_exporter")

_Path = tuple[str, ...]


def variables(cls: type[Options] = ExporterConfig, path: _Path = ()) -> Iterator[tuple[str, _Path]]:
    """Yield the environment variable of every option, and the option's path in the tree."""
    for name, hint in option_types(cls).items():
        if is_group(hint):
            yield from variables(hint, (*path, name))
        else:
            yield PREFIX + "_".join((*path, name)).upper(), (*path, name)


def options_from_environment(
    signal: SignalName | None, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Read the options that are set in the environment.

    A wrong value is logged as an error, and the default applies, as OpenTelemetry's specification
    requires: an exception here would switch off other exporters too.

    Args:
        signal: The signal whose variables override the general ones; None reads only the general
            ones.
        environ: The environment; os.environ by default.

    Returns:
        Nested option names and values, all of them valid. An empty variable counts as unset.
    """
    environ = os.environ if environ is None else environ
    known = dict(variables())
    _warn_of_unknown(environ, known)
    options: dict[str, Any] = {}
    for variable, path in FALLBACKS.items():
        _read(environ, variable, path, options)
    for variable, path in known.items():
        _read(environ, variable, path, options)
    if signal is not None:
        for variable, path in known.items():
            own = variable.replace(PREFIX, f"{PREFIX}{signal.upper()}_", 1)
            _read(environ, own, path, options)
    return options


def options_of_signal_alone(signal: SignalName) -> dict[str, Any]:
    """Read only the variables that are for one signal; as `options_from_environment` does."""
    start = f"{PREFIX}{signal.upper()}_"
    own = {variable: text for variable, text in os.environ.items() if variable.startswith(start)}
    return options_from_environment(signal, own)


def configuration(signal: SignalName | None, given: Mapping[str, Any]) -> ExporterConfig:
    """Return the effective configuration: the given options laid over the environment.

    Args:
        signal: As in `options_from_environment`.
        given: Nested option names and values, from code or from a declarative file.

    Raises:
        ConfigError: A given option is unknown, or its value is not allowed.
    """
    build(ExporterConfig, merged({}, given))  # alone, so that no variable is blamed for an error
    return build(ExporterConfig, merged(options_from_environment(signal), given))


def declarative_file() -> str:
    """Return the file that configures the SDK instead of variables; "" if there is none."""
    return os.environ.get("OTEL_CONFIG_FILE", "").strip()


def proxy_for(url: str) -> str | None:
    """Return the URL of the HTTP proxy that the environment names for an address, or None.

    Args:
        url: The address: its scheme selects HTTP_PROXY or HTTPS_PROXY, and NO_PROXY may name its
            host, or its host and port. Lower-case names count too.

    Call it while forks wait: it may import.
    """
    parts = urlsplit(url)
    if f"{parts.scheme}_proxy" not in map(str.lower, os.environ):
        return None
    import urllib.request  # noqa: PLC0415 -- takes 0.3 MiB, and few processes have a proxy

    # Of the environment alone: on macOS asking the system crashes a forked process.
    proxy = urllib.request.getproxies_environment().get(parts.scheme, "").strip()
    if not proxy:
        return None
    # It asks the system only where the environment names no proxy at all.
    if any(map(urllib.request.proxy_bypass, (parts.hostname or "", parts.netloc))):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _read(environ: Mapping[str, str], variable: str, path: _Path, options: dict[str, Any]) -> None:
    text = environ.get(variable, "").strip()
    if not text:
        return
    hint: Any = ExporterConfig
    for name in path:
        hint = option_types(hint)[name]
    try:
        value = parse_text(hint, text)
        build(ExporterConfig, _nested(path, value))
    except ConfigError as error:
        _logger.error("%s is invalid, the default applies: %s", variable, error)
        return
    except ValueError as error:
        _logger.error("%s is %s: %s; the default applies", variable, shown(hint, text), error)
        return
    options.update(merged(options, _nested(path, value)))


def _nested(path: _Path, value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value  # type: ignore[no-any-return]  # a path has at least one name


_warned: set[str] = set()


def _warn_of_unknown(environ: Mapping[str, str], known: Mapping[str, _Path]) -> None:
    for variable in environ:
        if not variable.startswith(PREFIX) or variable in _warned:
            continue
        start = next((s for s in _SIGNAL_PREFIXES if variable.startswith(s)), PREFIX)
        name = variable.removeprefix(start)
        if variable not in known and PREFIX + name not in known:
            _warned.add(variable)  # only once, although three exporters read the environment
            names = [one.removeprefix(PREFIX) for one in known]
            if start == PREFIX:  # the name of a signal may be what is misspelt
                names += [
                    f"{own.removeprefix(PREFIX)}{one}" for own in _SIGNAL_PREFIXES for one in names
                ]
            meant = nearest(name, names, cutoff=0.7)
            hint = f"; did you mean {start}{meant}?" if meant else ""
            _logger.warning("%s is not a variable of otel_cbtop_exporter%s", variable, hint)

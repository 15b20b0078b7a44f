"""`otel-cbtop config` and `otel-cbtop schema`: options in effect, and what events look like."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, get_args

import click

from otel_cbtop_exporter.config import ExporterConfig
from otel_cbtop_exporter.env import (
    PREFIX,
    SignalName,
    declarative_file,
    options_from_environment,
    options_of_signal_alone,
    variables,
)
from otel_cbtop_exporter.errors import ConfigError, SinkError
from otel_cbtop_exporter.events import SCHEMA_VERSION
from otel_cbtop_exporter.masking import MASK, is_secret, without_login
from otel_cbtop_exporter.options import Options, build, option_types
from otel_cbtop_exporter.sinks import sink_factory

__all__ = ["show_config", "show_schema"]

_SIGNALS: tuple[SignalName, ...] = get_args(SignalName)


class _Complaints(logging.Handler):
    """Keeps what is logged about the environment, to show it after the options."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.levelname.lower()}: {record.getMessage()}")


@click.command("config")
@click.option(
    "--signal",
    type=click.Choice(_SIGNALS),
    help="With the variables that are for this signal alone.",
)
def show_config(signal: SignalName | None) -> None:
    """Show every option as its environment variable, with its value in this environment.

    Secrets are masked. Ends with status 1 if a variable is wrong or a sink lacks something that
    OTEL_CONFIG_FILE cannot give it. Does not check whether files, folders and servers exist.
    """
    logger = logging.getLogger("otel_cbtop_exporter")
    complaints = _Complaints()
    logger.addHandler(complaints)
    logger.propagate = False
    try:
        given = options_from_environment(signal)
        # Mistakes are reported whichever signal they are for.
        others = {other: options_from_environment(other) for other in _SIGNALS}
        alone = {other: options_of_signal_alone(other) for other in _SIGNALS}
    finally:
        logger.removeHandler(complaints)
        logger.propagate = True
    messages = list(dict.fromkeys(complaints.messages))
    level = "error"
    if file := declarative_file():
        level = "note"  # the file may give what is lacking here
        messages.append(
            f"note: OTEL_CONFIG_FILE is {file}: what it says holds, and this where it is silent"
        )
    try:
        config = build(ExporterConfig, given)
    except ConfigError as error:  # each value is valid, but not in combination
        messages.append(f"{level}: {error}")
        config = ExporterConfig()
    defaults = ExporterConfig()
    width = max(len(variable) for variable, _ in variables())
    for variable, path in variables():
        value, default = _at(config, path), _at(defaults, path)
        shown = f"{variable:<{width}} = {value}"
        is_set = _is_given(given, path)
        note = "(default)" if not is_set else f"(default: {default})"
        click.secho(f"{shown}  {note}".rstrip(), bold=is_set)
    messages += [f"{level}: {lack}" for name in config.sink if (lack := _lacking(name, config))]
    for other in _SIGNALS if signal is None else ():
        for line in _lines_of(other, alone[other]):
            click.secho(line, bold=True)
        messages += [
            f"{level}: for {other}: {one}"
            for one in _wrong_with(others[other])
            if f"{level}: {one}" not in messages
        ]
    for message in messages:
        click.echo(message, err=True)
    if any(not message.startswith("note: ") for message in messages):
        raise SystemExit(1)


def _lines_of(signal: SignalName, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each variable that is for one signal alone."""
    for variable, path in variables():
        if _is_given(options, path):
            own = variable.replace(PREFIX, f"{PREFIX}{signal.upper()}_", 1)
            value = _at(build(ExporterConfig, options), path)
            yield f"{own} = {value}  (for {signal} alone; see --signal {signal})"


def _at(config: ExporterConfig, path: tuple[str, ...]) -> str:
    """Return an option's value in the form of its variable, masked if it is secret."""
    group: Options = config
    for name in path[:-1]:
        group = getattr(group, name)
    value = getattr(group, path[-1])
    if value in (None, (), {}):
        return "unset" if value is None else "empty"
    hint = option_types(type(group))[path[-1]]
    if isinstance(value, Mapping):
        pairs = dict.fromkeys(value, MASK) if is_secret(hint) else value
        return ",".join(f"{key}={text}" for key, text in pairs.items())
    if is_secret(hint):
        return MASK
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else without_login(hint, str(value))


def _lacking(name: str, config: ExporterConfig) -> str:
    """Return what a sink needs and lacks, or ""."""
    try:
        if name != "none":
            sink_factory(name, config)
    except SinkError as error:
        return str(error)
    return ""


def _wrong_with(given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a configuration as a whole."""
    try:
        config = build(ExporterConfig, given)
    except ConfigError as error:
        return [str(error)]
    return [lack for name in config.sink if (lack := _lacking(name, config))]


def _is_given(given: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    for name in path:
        if name not in given:
            return False
        given = given[name]
    return True


@click.command("schema")
def show_schema() -> None:
    """Print the JSON Schema of an event."""
    schemas = resources.files("otel_cbtop_exporter") / "schemas"
    published = schemas / f"event_v{SCHEMA_VERSION}.json"
    click.echo(published.read_text(encoding="utf-8").rstrip("\n"))

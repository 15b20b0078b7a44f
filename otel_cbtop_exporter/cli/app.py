"""The command `otel-cbtop` and its subcommands."""

from __future__ import annotations

import click

from otel_cbtop_exporter.cli.configuration import show_config, show_schema
from otel_cbtop_exporter.cli.lines import tail, validate
from otel_cbtop_exporter.cli.spool import spool
from otel_cbtop_exporter.cli.summary import summary
from otel_cbtop_exporter.cli.trace import trace

__all__ = ["app"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="otel-cbtop-exporter", message="%(package)s %(version)s")
def app() -> None:
    """Look at written events, at waiting events, and at the configuration in effect."""


app.add_command(summary)
app.add_command(trace)
app.add_command(tail)
app.add_command(validate)
app.add_command(spool)
app.add_command(show_config)
app.add_command(show_schema)

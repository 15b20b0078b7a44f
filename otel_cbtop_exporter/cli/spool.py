"""`otel-cbtop spool`: what waits on disk, who holds it, and how to take it out by hand."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import click

from otel_cbtop_exporter.cli.rendering import make_console, make_table, printable, time_text
from otel_cbtop_exporter.delivery.spool_left import HeldFile, SpoolFile, hold, look
from otel_cbtop_exporter.delivery.spool_owner import told_destination
from otel_cbtop_exporter.delivery.spool_rows import SpoolError
from otel_cbtop_exporter.own_log import counted

__all__ = ["spool"]

# Files in a spool's folder that are never sent automatically.
_ASIDE = (
    ("dead-letters.jsonl*", "refused for good"),
    ("**/*.db.damaged-*[0-9]", "damaged, set aside"),
)

_Folder = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def spool() -> None:
    """Look into a spool's folder, and take out what nobody delivers any more."""


@spool.command("list")
@click.argument("folder", type=_Folder)
def list_files(folder: Path) -> None:
    """List the files of FOLDER by destination: who made them, and what waits in them.

    A file is held by a process that is alive, or left by one that is dead. The one that holds it
    need not have made it: what a dead process left is taken over.

    FOLDER is what OTEL_EXPORTER_CBTOP_SPOOL_PATH names, or a destination's folder in it. Nothing
    is changed. Files set aside, because they are damaged or were refused for good, are named too,
    and the address of each destination.
    """
    console = make_console()
    table = make_table(
        "destination", "file", "made by", "state", right=("events", "bytes", "oldest")
    )
    files = look(folder)
    for file in files:
        table.add_row(*_row(file))
    console.print(table if files else "nothing waits")
    for file in files:
        if file.problem:
            name = file.name or file.folder.name
            console.print(f"{name}: {printable(file.problem)}", style="red", soft_wrap=True)
    for pattern, what in _ASIDE:
        for path in sorted(folder.glob(pattern)):
            console.print(f"{what}: {printable(path)}", style="yellow", soft_wrap=True)
    told = {(file.folder.name, told_destination(file.folder, file.name)) for file in files}
    for name, destination in sorted(told):
        if destination:
            console.print(f"for {printable(destination)}: {printable(name)}", soft_wrap=True)
    if any(file.problem for file in files):
        raise SystemExit(1)


def _row(file: SpoolFile) -> tuple[str, ...]:
    pid = file.name.split("-")[1:2]
    return (
        printable(file.folder.name),
        printable(file.name),
        printable(pid[0]) if pid else "",
        "held" if file.alive else "left" if file.name else "",
        "?" if file.events is None else f"{file.events:,}",
        "?" if file.spool_bytes is None else f"{file.spool_bytes:,}",
        "" if file.oldest_ns is None else time_text(file.oldest_ns),
    )


@spool.command("export")
@click.argument("folder", type=_Folder)
@click.option("--destination", help="Of this one alone, as `list` names it.")
@click.option("--lane", help="Of this bucket or topic alone.")
@click.option("--delete", is_flag=True, help="Remove files of which all is written.")
def export_files(folder: Path, *, destination: str | None, lane: str | None, delete: bool) -> None:
    """Write what dead processes left in FOLDER to standard output, one record a line.

    A record is JSON, or line protocol for InfluxDB: what would have been sent. What live processes
    hold is left alone, because they deliver it. Ends with status 1 if something cannot be read.
    """
    files = look(folder)
    names = sorted({file.folder.name for file in files})
    if destination is not None and destination not in names:
        known = ", ".join(map(printable, names)) or "none"
        raise click.ClickException(f"nothing waits for {destination}; destinations are {known}")
    left = {file.folder.name for file in files if file.name and not file.alive}
    if delete and destination is None and len(left) > 1:
        known = ", ".join(map(printable, sorted(left)))
        raise click.UsageError(
            f"what is for {known} would be one stream, and removed: take one --destination each"
        )
    failed = False
    lanes, others = Counter[str](), set[str]()
    for file in files:
        if file.alive or destination not in (None, file.folder.name):
            continue
        if not file.name:  # the folder itself
            failed = True
            click.echo(f"{file.folder.name} cannot be read: {printable(file.problem)}", err=True)
            continue
        try:
            with hold(file.folder, file.name) as held:
                written, passed_over = _write(held, lane)
                if delete and not passed_over:
                    held.remove()
        except (OSError, SpoolError) as error:
            if isinstance(error, BrokenPipeError):
                raise  # the reader is gone; click ends the command properly
            failed = True
            click.echo(f"{file.name} stays where it is: {printable(error)}", err=True)
        else:
            if lane is None or written:
                parts = [f"{counted(n)} of {printable(one)}" for one, n in written.items() if one]
                what = ", ".join(parts) or counted(written.total())
                stays = "; it stays, because of the others in it" if delete and passed_over else ""
                click.echo(f"{file.name}: {what}{stays}", err=True)
            lanes += written
            others |= passed_over
    if lane is not None and not lanes and not failed:
        known = ", ".join(map(printable, sorted(others))) or "none"
        raise click.ClickException(f"nothing waits for {lane}; buckets or topics are {known}")
    if failed:
        raise SystemExit(1)


def _write(held: HeldFile, lane: str | None) -> tuple[Counter[str], set[str]]:
    """Write what waits; return the number of events by lane, and the lanes left out."""
    out = sys.stdout.buffer
    written, others = Counter[str](), set[str]()
    for batch in held.batches():
        if lane in (None, batch.lane):
            out.writelines(body + b"\n" for body in batch.bodies)
            written[batch.lane] += len(batch)
        else:
            others.add(batch.lane)
    out.flush()  # before anything is removed
    return written, others

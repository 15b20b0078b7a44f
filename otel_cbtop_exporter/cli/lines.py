"""`otel-cbtop tail` and `otel-cbtop validate`: a file, line by line."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click
from rich.console import Console
from rich.text import Text

from otel_cbtop_exporter.cli.event_files import damage, is_compressed, open_lines, read_events
from otel_cbtop_exporter.cli.rendering import event_line, make_console, printable
from otel_cbtop_exporter.errors import EventError
from otel_cbtop_exporter.events import decode_event
from otel_cbtop_exporter.own_log import counted

__all__ = ["tail", "validate"]

_POLL_SECONDS = 0.2


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("-n", "--lines", "count", type=click.IntRange(min=0), default=10, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, until Ctrl-C.")
def tail(file: str, *, count: int, follow: bool) -> None:
    """Show the last events of FILE (`-` is standard input), one a line."""
    console = make_console()
    if not follow:
        last: deque[bytes] = deque(maxlen=count)
        damaged: list[str] = []
        with damage(damaged), open_lines(file) as lines:
            last.extend(line for line in lines if not line.isspace())  # blank lines do not count
        for line in last:
            _print_line(console, line)
        for error in damaged:
            _print_wrong(console, error)
        return
    if file == "-":
        raise click.UsageError("standard input has an end; leave out --follow")
    if is_compressed(file):
        raise click.UsageError(
            f"{click.format_filename(file)} is compressed, so nothing will be appended to it; "
            "leave out --follow"
        )
    try:
        for line in _followed(Path(file), count):
            _print_line(console, line)
    except KeyboardInterrupt:
        return


def _followed(path: Path, count: int) -> Iterator[bytes]:
    """Yield the last lines of a file, and then what is appended, even after a rotation."""
    file = path.open("rb")
    try:
        backlog = deque(file, maxlen=count + 1)
        torn = b"" if not backlog or backlog[-1].endswith(b"\n") else backlog.pop()
        yield from list(backlog)[-count:] if count else ()
        while True:
            for part in file:
                torn += part
                if torn.endswith(b"\n"):
                    yield torn
                    torn = b""
            if os.fstat(file.fileno()).st_size < file.tell():  # copied away and emptied
                file.seek(0)
                torn = b""
                continue
            # Checked before the last read of the old file; otherwise lines written between the
            # two would be missed.
            if _was_replaced(file.fileno(), path):
                yield from _lines_to_the_end(file, torn)
                torn = b""
                file.close()
                file = path.open("rb")
                continue
            time.sleep(_POLL_SECONDS)
    finally:
        file.close()


def _lines_to_the_end(file: BinaryIO, torn: bytes) -> Iterator[bytes]:
    """Yield the rest of a file, completing the partial line `torn` that was read before."""
    for part in file:
        yield torn + part
        torn = b""
    if torn:
        yield torn


def _was_replaced(descriptor: int, path: Path) -> bool:
    try:
        return not os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:  # renamed, and the new file does not exist yet
        return False


def _print_line(console: Console, line: bytes) -> None:
    if line.isspace():
        return
    try:
        console.print(event_line(decode_event(line)), soft_wrap=True)
    except EventError as error:
        _print_wrong(console, str(error))


def _print_wrong(console: Console, error: str) -> None:
    console.print(Text(printable(error), "yellow"), soft_wrap=True)


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
def validate(files: tuple[str, ...]) -> None:
    """Decode every line of FILES (`-` is standard input) and say which are wrong, and why.

    Ends with status 1 if a line is not an event.
    """
    events = wrong = 0
    for line in read_events(files):
        if line.event is None:
            wrong += 1
            click.echo(f"{click.format_filename(line.path)}:{line.number}: {printable(line.error)}")
        else:
            events += 1
    click.echo(
        f"{counted(events)}, {counted(wrong, 'line')} that {'is' if wrong == 1 else 'are'} not"
    )
    if wrong:
        raise SystemExit(1)

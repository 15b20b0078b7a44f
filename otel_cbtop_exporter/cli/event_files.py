"""Reading events back from JSON Lines files, including rotated and compressed ones."""

from __future__ import annotations

import errno
import gzip
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from otel_cbtop_exporter.errors import EventError
from otel_cbtop_exporter.events import Event, decode_event

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Line", "damage", "is_compressed", "open_lines", "read_events", "whole_files"]

_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Line(NamedTuple):
    """One line of a file.

    Attributes:
        path: The path as it was given.
        number: The line's number, from 1.
        event: None if the line does not hold one.
        error: Why it does not.
    """

    path: str
    number: int
    event: Event | None
    error: str = ""


def read_events(paths: Iterable[str]) -> Iterator[Line]:
    """Yield every line of the files, in order; blank lines count but are not yielded.

    A damaged or truncated compressed file ends with a line that says so.

    Args:
        paths: Existing files; `-` is standard input.

    Raises:
        OSError: A file cannot be read.
    """
    for path in paths:
        number = 0
        damaged: list[str] = []
        with damage(damaged), open_lines(path) as lines:
            for number, line in enumerate(lines, 1):
                if not line.isspace():
                    yield _decoded(path, number, line)
        for error in damaged:
            yield Line(path, number + 1, None, error)


@contextmanager
def damage(found: list[str]) -> Iterator[None]:
    """End the block at damage in a compressed file, and add the error to a list."""
    try:
        yield
    except _BROKEN as error:
        found.append(f"the compressed file is damaged here: {error}")


def is_compressed(path: str) -> bool:
    """Whether `open_lines` decompresses a file.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        return file.read(4).startswith((_GZIP, _ZSTD))


@contextmanager
def open_lines(path: str) -> Iterator[BinaryIO]:
    """Open a file or standard input, decompressing it if its first bytes say it is compressed.

    Raises:
        OSError: The file cannot be read.
    """
    with nullcontext(_standard_input()) if path == "-" else Path(path).open("rb") as file:
        magic = file.peek(4)[:4]
        if magic.startswith(_GZIP):
            with gzip.open(file) as uncompressed:
                yield cast("BinaryIO", uncompressed)
        elif magic == _ZSTD:
            with zstd.open(file) as uncompressed:
                yield cast("BinaryIO", uncompressed)
        else:
            yield file


def _standard_input() -> io.BufferedReader:
    given: Any = getattr(sys.stdin, "buffer", None)
    if given is None:
        raise OSError(errno.EBADF, "standard input is closed")
    return given if isinstance(given, io.BufferedReader) else io.BufferedReader(given)


def whole_files(paths: Iterable[str]) -> list[str]:
    """Leave out duplicates that a pattern like `events.jsonl*` finds during a compression.

    These are the unfinished compressed file, and a plain file beside its finished one.
    """
    given = dict.fromkeys(paths)
    return [
        path
        for path in given
        if not path.endswith((".gz.tmp", ".zst.tmp"))
        and f"{path}.gz" not in given
        and f"{path}.zst" not in given
    ]


def _decoded(path: str, number: int, line: bytes) -> Line:
    try:
        return Line(path, number, decode_event(line))
    except EventError as error:
        return Line(path, number, None, str(error))

"""Sequences that make their items only when asked for one, which rarely happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

__all__ = ["Lines", "OnDemand"]

_T = TypeVar("_T")


class OnDemand(Sequence[_T]):
    """A sequence that makes all its items when one is first asked for.

    Subclasses define `__len__`, and make the items in `_make`. The items are kept, so that asking
    again returns the same objects. It equals every sequence of equal items.
    """

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: list[_T] | None = None

    def _make(self) -> list[_T]:
        raise NotImplementedError

    def _list(self) -> list[_T]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __iter__(self) -> Iterator[_T]:
        return iter(self._list())

    @overload
    def __getitem__(self, index: int) -> _T: ...

    @overload
    def __getitem__(self, index: slice) -> list[_T]: ...

    def __getitem__(self, index: int | slice) -> _T | list[_T]:
        return self._list()[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._list() == list(other)

    __hash__ = None  # type: ignore[assignment]  # like `list`; mypy accepts it only there

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._list()!r})"


class Lines(OnDemand[bytes]):
    """The lines of one text, without their newlines; the text is split when a line is asked for.

    Args:
        text: The text; each of its lines ends in a newline.
        count: The number of lines.
    """

    __slots__ = ("_count", "text")

    def __init__(self, text: bytes, count: int) -> None:
        super().__init__()
        self.text = text
        self._count = count

    def __len__(self) -> int:
        return self._count

    @property
    def body_bytes(self) -> int:
        """The size of all lines together, without the newlines."""
        return len(self.text) - self._count

    def _make(self) -> list[bytes]:
        return self.text.split(b"\n")[:-1]

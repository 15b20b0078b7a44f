"""Tags that many events share, and what was made of them once for all.

Not here: which tags an event has (`mapping/`), how line protocol and JSON write them (`encoding/`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping
from typing import Any

import msgspec

__all__ = ["TagColumn", "TagKeys", "TagSet", "object_type", "portable_text"]


class TagSet(Mapping[str, str]):
    """Tags that many events share: immutable, sorted by key, without empty values.

    Tag sets repeat, so what was made of one is kept in it.

    Args:
        tags: Any mapping of tag keys to texts; empty ones are left out, and lone surrogates
            become U+FFFD. What is neither a text nor None becomes its `str()`.

    Attributes:
        tag_keys: In order.
        texts: In the order of the keys.
        json: The JSON object.
        json_size: Its bytes.
        rendered: What others made of it, each under a key that begins with its own name, or is
            `"line <measurement>"` or `"points <measurement>"` (line protocol), because a text is
            found sooner than a tuple.
    """

    __slots__ = ("_hash", "_tags", "json", "json_size", "rendered", "tag_keys", "texts")

    def __init__(self, tags: Mapping[str, str]) -> None:
        pairs = tags.items()
        if {*map(type, tags), *map(type, tags.values())} - {str}:
            pairs = {_plain(key): _plain(text) for key, text in pairs}.items()
        shown = {key: text for key, text in sorted(pairs) if key and text}
        try:
            json = msgspec.json.encode(shown)
        except UnicodeEncodeError:
            shown = {portable_text(key): portable_text(text) for key, text in shown.items()}
            json = msgspec.json.encode(shown)
        self._set(tuple(shown), list(shown.values()), json)

    def _set(self, keys: tuple[str, ...], texts: list[str], json: bytes) -> None:
        self.tag_keys = keys
        self.texts = texts
        self.json = msgspec.Raw(json)
        self.json_size = len(json)
        self.rendered: dict[Any, Any] = {}
        self._tags: dict[str, str] | None = None
        self._hash: int | None = None

    def _dict(self) -> dict[str, str]:
        # Half of the memory that a tag set takes, and what most are never asked for.
        if self._tags is None:
            self._tags = dict(zip(self.tag_keys, self.texts, strict=True))
        return self._tags

    def __getitem__(self, key: str) -> str:
        return self._dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tag_keys)

    def __len__(self) -> int:
        return len(self.tag_keys)

    def __reduce__(self) -> tuple[Any, ...]:
        return TagSet, (self._dict(),)  # without the hash, which is this process's

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(bytes(self.json))
        return self._hash

    def items(self) -> ItemsView[str, str]:
        """Return the pairs, in order; the one that comes with `Mapping` asks for each key."""
        return self._dict().items()

    def __repr__(self) -> str:
        return f"TagSet({self._dict()!r})"


class TagColumn(list[TagSet]):
    """The tag sets of a table's events; a metric's are the same object in the next collection.

    Attributes:
        rendered: As in `TagSet`, of all of them: lists in the same order.
    """

    __slots__ = ("rendered",)

    def __init__(self, tag_sets: Iterable[TagSet]) -> None:
        super().__init__(tag_sets)
        self.rendered: dict[str, list[Any]] = {}


class TagKeys:
    """The keys of many tag sets, which are made of their texts alone: a third of the time.

    Args:
        keys: In order, no two of them equal.
    """

    __slots__ = ("_object_type", "_used", "keys")

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self._object_type: Callable[..., Any] | None = None
        self._used = False

    def tag_set(self, texts: list[str]) -> TagSet:
        """Make a tag set of texts in the order of the keys; the list becomes the tag set's."""
        if not self._used:  # a type takes a tenth of a millisecond, and keys may come but once
            self._used = True
            return TagSet(dict(zip(self.keys, texts, strict=True)))
        if self._object_type is None:
            self._object_type = object_type(self.keys)
        if "" not in texts:
            try:
                json = msgspec.json.encode(self._object_type(*texts))
            except UnicodeEncodeError:
                pass
            else:
                tags = TagSet.__new__(TagSet)
                tags._set(self.keys, texts, json)  # noqa: SLF001  makes it, as `__init__` does
                return tags
        return TagSet(dict(zip(self.keys, texts, strict=True)))


@functools.lru_cache(maxsize=1_024)
def object_type(keys: tuple[str, ...]) -> Callable[..., Any]:
    """Return a type that msgspec encodes as an object with these keys.

    An instance takes half of the memory of a dict, and half of the time to make and to encode.
    It is made of the values, in the order of the keys; its attributes are v0, v1, and so on.
    Where a key is none that msgspec takes, it is a dict.
    """
    names = {f"v{number}": key for number, key in enumerate(keys)}
    fields = [(name, Any) for name in names]
    try:
        # gc=False for the reason given at `Event`.
        return msgspec.defstruct("Object", fields, rename=names, frozen=True, gc=False)
    # Quotation marks, control characters, lone surrogates; keys of a type of their own, or twice.
    except (ValueError, TypeError):
        return lambda *values: dict(zip(keys, values, strict=True))


def _plain(text: Any) -> str:
    # A name may be of a subclass, such as a template's safe text, or no text at all.
    if isinstance(text, str):
        return str.__str__(text)
    return "" if text is None else str(text)


def portable_text(text: str) -> str:
    """Return a text with U+FFFD for lone surrogates, as a plain `str`, not of a subclass."""
    return str.__str__(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")

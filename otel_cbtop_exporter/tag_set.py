"""Tags that many events share, with a cache of what encoders make from them.

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

    Tag sets repeat, so what is made from one is cached in it.

    Args:
        tags: Any mapping of tag keys to texts. Empty keys and texts are left out, and so is None;
            anything else becomes its `str()`. Lone surrogates become U+FFFD.

    Attributes:
        tag_keys: The keys, in order.
        texts: The texts, in the order of the keys.
        json: The tags as a JSON object.
        json_size: How many bytes `json` has.
        rendered: A cache for what other modules make from the tags. Each key begins with a name
            that its module alone uses. Line protocol's keys are the texts `"line <measurement>"`
            and `"points <measurement>"`, because a text is looked up faster than a tuple.
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
        # Made on demand: a dict is half the memory of a tag set, and most are never asked for it.
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
        return TagSet, (self._dict(),)  # without the hash, which only this process can use

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(bytes(self.json))
        return self._hash

    def items(self) -> ItemsView[str, str]:
        """Return the pairs, in order; `Mapping.items` would look up each key."""
        return self._dict().items()

    def __repr__(self) -> str:
        return f"TagSet({self._dict()!r})"


class TagColumn(list[TagSet]):
    """The tag sets of a table's events; a metric with the same series reuses the same object.

    Attributes:
        rendered: A cache as in `TagSet`, but for all tag sets: lists in the same order.
    """

    __slots__ = ("rendered",)

    def __init__(self, tag_sets: Iterable[TagSet]) -> None:
        super().__init__(tag_sets)
        self.rendered: dict[str, list[Any]] = {}


class TagKeys:
    """Makes tag sets that all have the same keys.

    They are made from their texts alone, which takes a third of the time of `TagSet(...)`.

    Args:
        keys: The keys in order, without duplicates.
    """

    __slots__ = ("_object_type", "_used", "keys")

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self._object_type: Callable[..., Any] | None = None
        self._used = False

    def tag_set(self, texts: list[str]) -> TagSet:
        """Make a tag set from texts in the order of the keys; it may keep the list."""
        if not self._used:  # making a type takes 0.1 ms, and some keys come only once
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

    An instance takes half the memory of a dict, and half the time to make and to encode. The type
    is called with the values, in the order of the keys; its attributes are v0, v1, and so on. If
    msgspec does not accept one of the keys, a function that returns a dict takes the type's place.
    """
    names = {f"v{number}": key for number, key in enumerate(keys)}
    fields = [(name, Any) for name in names]
    try:
        # gc=False for the reason given at `Event`.
        return msgspec.defstruct("Object", fields, rename=names, frozen=True, gc=False)
    # A key has a quotation mark, a control character, a lone surrogate or another type, or is there
    # twice.
    except (ValueError, TypeError):
        return lambda *values: dict(zip(keys, values, strict=True))


def _plain(text: Any) -> str:
    # It may be of a subclass, such as a template's safe text, or not a text at all.
    if isinstance(text, str):
        return str.__str__(text)
    return "" if text is None else str(text)


def portable_text(text: str) -> str:
    """Return a text as a plain `str`, not of a subclass, with U+FFFD for lone surrogates."""
    return str.__str__(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")

"""How options and their values are shown: without secrets, and without the login of a URL."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Meta

__all__ = ["MASK", "PROPERTIES", "SECRET", "URL", "is_secret", "metas", "shown", "without_login"]

SECRET = Meta(extra={"secret": True})
"""Marks an option, in its `Annotated` type, whose value is never shown."""

URL = Meta(extra={"url": True})
"""Marks an option whose value may contain a login, even if the value is not a well-formed URL."""

PROPERTIES = Meta(extra={"secret": True, "properties": True})
"""Marks a mapping of a client's properties: all values are texts, and some are secrets."""

MASK = "********"
"""Shown in place of a secret."""

# A password may contain `/`, `?` or `#`, although no URL parser allows them there.
_LOGIN_IN_URL = re.compile(r"(?<=://)\S*@")
_QUERY = re.compile(r"(?<=[?#]).+", re.DOTALL)


def metas(hint: Any) -> Iterator[Meta]:
    """Yield the metadata that `Annotated` gives to a type and its parts."""
    for arg in typing.get_args(hint):
        if isinstance(arg, Meta):
            yield arg
        else:
            yield from metas(arg)


def is_secret(hint: Any) -> bool:
    """Say whether an option's value must never be shown."""
    return any(meta in (SECRET, PROPERTIES) for meta in metas(hint))


def shown(hint: Any, value: Any) -> str:
    """Return an option's value as it may appear in messages: without secrets."""
    if not value or not is_secret(hint):
        if isinstance(value, str):
            return repr(without_login(hint, value))
        return f"a {type(value).__name__}" if URL in metas(hint) else _masked(repr(value))
    if isinstance(value, Mapping):
        return repr(dict.fromkeys(value, MASK))
    return repr(MASK)


def without_login(hint: Any, text: str) -> str:
    """Return an option's text without the user name, password and query that a URL may have.

    A password may contain spaces, and the scheme may be missing.
    """
    if URL not in metas(hint):
        return _masked(text)
    login, at, rest = text.rpartition("@")
    rest = _QUERY.sub(MASK, rest)
    if not at:
        return rest
    scheme, colon, _ = login.partition("://")
    return f"{scheme}{colon}{MASK}@{rest}" if colon else f"{MASK}@{rest}"


def _masked(text: str) -> str:
    return _LOGIN_IN_URL.sub(f"{MASK}@", text)

"""The machinery of configuration: groups of options that check themselves.

Not here: which options there are (`config.py`), the environment (`env.py`).
"""

from __future__ import annotations

import functools
import os
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from otel_cbtop_exporter.errors import ConfigError
from otel_cbtop_exporter.fork_lock import forks_wait
from otel_cbtop_exporter.masking import PROPERTIES, is_secret, metas, shown

__all__ = [
    "AtLeastOne",
    "NotNegative",
    "Options",
    "WaitMs",
    "absolute_path",
    "build",
    "is_group",
    "merged",
    "nearest",
    "option_types",
    "parse_text",
]

# Integers fit in 64 bits; a waiting time is at most a day.
AtLeastOne = Annotated[int, Meta(ge=1, le=2**63 - 1)]
NotNegative = Annotated[int, Meta(ge=0, le=2**63 - 1)]
WaitMs = Annotated[int, Meta(ge=1, le=86_400_000)]

# The names of properties whose values are secrets end in one of these.
_SECRET_PROPERTIES = ("password", "secret", "key", "user.info", "token")

# Pairs of options for the same setting, by group and name: giving one of them removes the other,
# if that came from a lower layer, such as the environment.
_INSTEAD = {("influxdb", "token"): "token_file", ("influxdb", "token_file"): "token"}
# What a value of a type, or of a type's name in msgspec's messages, is called, for people who do
# not write Python.
_IN_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    "array": "a list",
    "object": "a mapping",
}
_O = TypeVar("_O", bound="Options")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A group of options, checked when it is made.

    Raises:
        ConfigError: A value has the wrong type or is outside its limits.
    """

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in option_types(type(self)).items():
            value = getattr(self, name)
            if is_group(hint):
                if not isinstance(value, hint):
                    msgspec.structs.force_setattr(self, name, build(hint, value))
                continue
            try:
                checked = msgspec.convert(_as_text(hint, value), hint)
            except msgspec.ValidationError as error:
                raise _wrong(self.group, name, hint, value, error) from None
            msgspec.structs.force_setattr(self, name, checked)

    def __repr__(self) -> str:
        hints = option_types(type(self))
        parts = (f"{name}={shown(hint, getattr(self, name))}" for name, hint in hints.items())
        return f"{type(self).__name__}({', '.join(parts)})"


def build(cls: type[_O], values: Mapping[str, Any] | None) -> _O:
    """Make options from plain values, as a keyword argument or a configuration file has them.

    Args:
        cls: The group of options to make.
        values: Option names and values; groups may be mappings. None and `{}` (which a null in a
            declarative file becomes) stand for the default.

    Raises:
        ConfigError: An option is unknown, or its value is not allowed.
    """
    if not isinstance(values, Mapping | None):
        kind = type(values).__name__  # not the value, which may hold a secret
        raise ConfigError(f"{cls.group} must be a mapping of its options, got a {kind}")
    hints = option_types(cls)
    given: dict[str, Any] = {}
    for name, value in (values or {}).items():
        if name not in hints:
            meant = _meant(cls.group, hints, str(name))
            hint = f"; did you mean {meant}?" if meant else ""
            raise ConfigError(f"there is no option {_dotted(cls.group, str(name))}{hint}")
        if value is not None and not (value == {} and not _holds_mapping(hints[name])):
            given[name] = value
    return cls(**given)


def _meant(group: str, hints: Mapping[str, Any], name: str) -> str:
    """Return the option that was probably meant by a name that is none, or ""."""
    for inner, hint in hints.items():
        option = name.removeprefix(f"{inner}_")
        if option != name and is_group(hint) and option in option_types(hint):
            return f'{inner}={{"{option}": ...}}'  # as in the name of its variable
    option = nearest(name, hints)
    return _dotted(group, option) if option else ""


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the name that a misspelt one is most like, or "" if none is like it.

    Args:
        name: The misspelt name.
        names: The names that exist.
        cutoff: How like it must be, from 0 to 1.
    """
    with forks_wait():
        import difflib  # noqa: PLC0415 -- only a mistake needs it
    found = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return found[0] if found else ""


def merged(below: Mapping[str, Any], above: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Lay options over others, group by group; None and `{}` keep the value below.

    Of two options for the same setting, such as a token and its file, the upper one replaces the
    lower one.
    """
    result = dict(below)
    for name, value in above.items():
        if value is None or value == {}:
            result.setdefault(name, value)
            continue
        if isinstance(value, Options):
            value = msgspec.structs.asdict(value)  # noqa: PLW2901  a group, ready made
        under = result.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = merged(under, value, name)  # noqa: PLW2901  the group that it makes
        other = _INSTEAD.get((group, name), "")
        if other not in above:
            result.pop(other, None)
        result[name] = value
    return result


@functools.cache
def option_types(cls: type[Options]) -> dict[str, Any]:
    """Return the options of a group and their types, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in cls.__struct_fields__}


def parse_text(hint: Any, text: str) -> Any:
    """Convert the text of an environment variable to an option's type.

    Items of lists, and the `key=value` pairs of mappings, are separated by commas. The words of a
    choice may be in capitals, as OpenTelemetry's specification requires.

    Raises:
        ValueError: The text is not valid; the message says what was expected.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text in UTF-8") from None
    value: Any = text
    if choices := _choices(hint):
        value = text.lower() if text.lower() in choices else text
    elif _holds_mapping(hint):
        pairs = [part.partition("=") for part in _split_names(text)]
        if any(not separator for _, separator, _ in pairs):
            raise ValueError("expected key=value,key=value")
        value = {key.strip(): part.strip() for key, _, part in pairs}
    elif typing.get_origin(_bare(hint)) is tuple:
        some = _choices(typing.get_args(_bare(hint))[0])
        value = [name.lower() if name.lower() in some else name for name in _split_names(text)]
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(_expectation(hint, error)) from None


def _split_names(text: str) -> tuple[str, ...]:
    """Return the items of a list that are separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def absolute_path(option: str, path: str) -> str:
    """Make a path absolute before the application, such as a daemon, changes its directory.

    Args:
        option: The option that has the path, for the message.
        path: The path, which may begin with `~` or `~user`.

    Raises:
        ConfigError: There is no such home folder.
    """
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:
        raise ConfigError(f"{option} is {path!r}: there is no such home folder") from None
    except OSError:  # there is no working directory; whoever uses the path reports that
        return path


def _as_text(hint: Any, value: Any) -> Any:
    """Convert a number, a boolean or a path from Python or YAML to text, if the option holds texts.

    It stays as it is where the file may have had another text: YAML reads `0123` as 83 and `1.10`
    as 1.1, so secrets, headers and fractions need quotes. A text in place of a list is split at
    its commas, as in the environment.
    """
    bare = _bare(hint)
    if typing.get_origin(bare) is tuple:
        return _split_names(value) if isinstance(value, str) else value
    if PROPERTIES in metas(hint) and isinstance(value, Mapping):
        return {
            key: part if str(key).endswith(_SECRET_PROPERTIES) else _plain_text(part)
            for key, part in value.items()
        }
    # A text that must match a pattern, such as an octal mode, need not be the number it looks like.
    is_clear = isinstance(value, os.PathLike) or not any(m.pattern for m in metas(hint))
    is_free = bare is str and not is_secret(hint) and is_clear
    if (is_free or _choices(hint)) and not isinstance(value, bool):
        return _plain_text(value)
    return value


def _plain_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return str(value) if isinstance(value, int) else value


def _bare(hint: Any) -> Any:
    """Strip Annotated and `| None`."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    args = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if type(None) in typing.get_args(hint) and len(args) == 1:
        return _bare(args[0])
    return hint


def _holds_mapping(hint: Any) -> bool:
    return typing.get_origin(_bare(hint)) is dict


def is_group(hint: Any) -> bool:
    """Say whether an option's type is a group of options."""
    return isinstance(hint, type) and issubclass(hint, Options)


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the words that an option allows; none if it is not a choice."""
    bare = _bare(hint)
    return typing.get_args(bare) if typing.get_origin(bare) is Literal else ()


def _expectation(hint: Any, error: msgspec.ValidationError) -> str:
    """Say what is allowed; msgspec does not list the words of a `Literal`."""
    bare = _bare(hint)
    if typing.get_origin(bare) is tuple:
        bare = typing.get_args(bare)[0]
    if choices := _choices(bare):
        return f"expected one of {', '.join(choices)}"
    for meta in metas(hint):
        if meta.description:
            return f"expected {meta.description}"
    text = str(error).partition(" - at ")[0]
    if bare in _IN_WORDS and ", got " in text and not text.startswith("Expected `array`"):
        return f"expected {_IN_WORDS[bare]}"
    for kind, words in _IN_WORDS.items():
        text = text.replace(f"`{getattr(kind, '__name__', kind)}`", words)
    return text[:1].lower() + text[1:]


def _wrong(
    group: str, name: str, hint: Any, value: Any, error: msgspec.ValidationError
) -> ConfigError:
    is_no_text = _bare(hint) is str and not isinstance(value, str)
    expected = "expected a text, in quotes" if is_no_text else _expectation(hint, error)
    return ConfigError(f"{_dotted(group, name)} is {shown(hint, value)}: {expected}")


def _dotted(group: str, name: str) -> str:
    return f"{group}.{name}" if group else name

"""Every error that this package raises.

    CbtopError
    +-- ConfigError (also a ValueError)    an argument or setting is not allowed
    |   +-- SinkError                      a sink cannot be used at all
    +-- EventError (also a ValueError)     a line, or what a caller made, is not a valid event

None of them reaches an instrumented application: exporters raise only from their
constructors, and only for arguments given in code or in a declarative file.
"""

from __future__ import annotations

__all__ = ["CbtopError", "ConfigError", "EventError", "SinkError"]


class CbtopError(Exception):
    """The base of every error of this package."""


class ConfigError(CbtopError, ValueError):
    """You gave a setting that is not allowed; the message names it, its value, and what is."""


class EventError(CbtopError, ValueError):
    """You decoded or made something that is not a valid event; the message says what is wrong."""


class SinkError(ConfigError):
    """A sink cannot be used: its extra is not installed, or a setting it needs is missing."""

"""What the readers of annotations have in common: their type, and the error they raise."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

Reader = Callable[[Any], Any]
# How a reader of a container finds the reader of what it holds.
Resolve = Callable[[Any], Reader]

_MSGSPEC_PATH = re.compile(r" - at `\$(\S*)`$")


class Mismatch(ValueError):
    """A value doesn't fit an annotation, or the annotation can't be read."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return f"{self.reason} - at `${self.path}`" if self.path else self.reason

    def under(self, step: str) -> Mismatch:
        """The same, seen from the container that holds the value at `step`."""
        return Mismatch(self.reason, step + self.path)

    @classmethod
    def from_msgspec(cls, error: msgspec.ValidationError) -> Mismatch:
        """Take the path out of msgspec's message, so that it can be put under another."""
        text = str(error)
        found = _MSGSPEC_PATH.search(text)
        return cls(text[: found.start()], found[1]) if found else cls(text)


def at(reader: Reader, value: Any, step: str) -> Any:
    """Read a part of a container; a mismatch names the place."""
    try:
        return reader(value)
    except Mismatch as error:
        raise error.under(step) from error


def describe(type_: Any) -> str:
    """The annotation as a person would write it."""
    if isinstance(type_, type) and not hasattr(type_, "__origin__"):
        return type_.__qualname__
    return re.sub(r"\b(?:[a-zA-Z_]\w*\.)+(?:<locals>\.)?(?=\w)", "", str(type_))


def expect(kind: type, value: Any, wanted: str) -> None:
    """Refuse a value that isn't of the BSON-native type."""
    if not isinstance(value, kind):
        raise Mismatch(f"Expected `{wanted}`, got `{type(value).__name__}`")

"""Readers of classes that msgspec leaves to a hook: pydantic models, paths, deques and the like."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Container, Iterable, Reversible
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from types import GenericAlias
from typing import Any, get_args, get_origin
from zoneinfo import ZoneInfo

from bson.objectid import ObjectId

from streamline.codec import models
from streamline.codec.mismatch import Mismatch, Reader, Resolve, describe, expect

_FROM_TEXT = (
    PurePath, ObjectId, ZoneInfo, IPv4Address, IPv4Network, IPv6Address, IPv6Network
)  # fmt: skip
_SCALARS = (str, int, float, bytes)
_ITERABLES = (Iterable, Container, Reversible, Collection)


def custom_reader(type_: Any, resolve: Resolve) -> Reader | None:
    """Return the reader of such a class, or None where it is another's business."""
    cls: Any = get_origin(type_) or type_
    if not isinstance(cls, type):
        return None
    if models.is_model(cls):
        return _model(cls)
    if issubclass(cls, Enum):
        return None
    if issubclass(cls, _FROM_TEXT):
        return _from(cls, str)
    scalar = next((base for base in _SCALARS if issubclass(cls, base)), None)
    if scalar is not None:
        return None if cls is scalar or cls is bool else _from(cls, scalar)
    return _collection(cls, get_args(type_), resolve)


def unknown_reader(type_: Any) -> Reader:
    """Return a reader that takes only what is an instance already."""

    def read(value: Any) -> Any:
        if isinstance(type_, type) and isinstance(value, type_):
            return value
        raise Mismatch(
            f"a value of type {describe(type_)} can't be rebuilt; "
            "use a dataclass, a msgspec Struct or a pydantic model"
        )

    return read


def _model(cls: Any) -> Reader:
    def read(value: Any) -> Any:
        try:
            return models.validate(cls, value)
        except ValueError as error:
            raise Mismatch(str(error)) from error

    return read


def _from(cls: Any, kind: type) -> Reader:
    def read(value: Any) -> Any:
        expect(kind, value, describe(cls))
        try:
            return cls(value)
        except Exception as error:
            raise Mismatch(f"Invalid `{describe(cls)}`: {error}") from error

    return read


def _collection(cls: Any, args: tuple[Any, ...], resolve: Resolve) -> Reader | None:
    item = args[0] if args else Any
    array = GenericAlias(list, (item,))
    mapping = GenericAlias(dict, args or (str, Any))
    if issubclass(cls, deque):
        return _then(cls, resolve(array))
    if issubclass(cls, Counter):
        return _then(cls, resolve(GenericAlias(dict, (item, int))))
    if issubclass(cls, OrderedDict):
        return _then(cls, resolve(mapping))
    if issubclass(cls, defaultdict):
        # What made the missing values can't be stored: the result raises KeyError, as a dict does.
        return _then(lambda found: cls(None, found), resolve(mapping))
    if cls in _ITERABLES:
        return resolve(array)
    return None


def _then(make: Any, reader: Reader) -> Reader:
    return lambda value: make(reader(value))

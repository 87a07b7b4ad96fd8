"""Python values to BSON-native ones: None, bool, int, float, str, bytes, list and dict.

The form is that of `msgspec.to_builtins`. It is walked here because msgspec leaves tuples (BSON has
only lists), drops private attrs fields, merges dict keys that become equal as text, cuts the
seconds of a UTC offset, refuses subclasses of the scalars, and can't say where the fault is.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from bson.objectid import ObjectId

from streamline.codec import models

# MongoDB documents a limit of 100 levels; the run's document around a payload takes a few.
MAX_DEPTH = 90
SCALARS = frozenset({str, int, float, bool, type(None), bytes})
# Classes made on the fly (in tests, in closures) must not pile up.
_MAX_ENCODERS = 4096
_MAX_STEPS = 12

_Encoder = Callable[[Any, int], Any]


class Unstorable(Exception):
    """A value (or a part of it) has no BSON-native form."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []

    def __str__(self) -> str:
        # Of a cycle the first steps say enough.
        where = "".join(self.path[:-_MAX_STEPS:-1]) + ("..." if len(self.path) > _MAX_STEPS else "")
        return f"{self.reason} - at `${where}`" if where else self.reason


def to_native(value: Any, depth: int = 0) -> Any:
    """Return the BSON-native form of a value, sharing no container with it.

    Raises:
        Unstorable: No such form, or nested deeper than MongoDB allows (a cycle, most likely).
    """
    cls = type(value)
    if cls in SCALARS:
        return value
    if depth > MAX_DEPTH:
        raise Unstorable(f"it refers to itself, or is nested deeper than {MAX_DEPTH} levels")
    encoder = _ENCODERS.get(cls) or _learn(cls)
    return encoder(value, depth + 1)


def _sequence(value: Any, depth: int) -> list[Any]:
    if SCALARS.issuperset(map(type, value)):
        return list(value)
    out: list[Any] = []
    try:
        for item in value:
            out.append(to_native(item, depth))
    except Unstorable as error:
        error.path.append(f"[{len(out)}]")
        raise
    return out


def _set(value: Any, depth: int) -> list[Any]:
    # The order of a set of texts differs between processes; equal inputs must be stored equal.
    items = _sequence(value, depth)
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=repr)


def _mapping(value: Any, depth: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    key: Any = None
    try:
        for key, item in value.items():
            name = key if type(key) is str else _key(key)
            out[name] = item if type(item) in SCALARS else to_native(item, depth)
    except Unstorable as error:
        error.path.append(f"[{key!r}]" if type(key) is not str else f".{key}")
        raise
    if len(out) != len(value):
        raise Unstorable("two of its keys are the same as text, such as 1 and '1'")
    return out


def _key(key: Any) -> str:
    native = key if isinstance(key, bool) or key is None else to_native(key)
    if type(native) is str:
        return native
    if type(native) in (int, float):
        return repr(native)
    raise Unstorable(
        f"a key of type {type(key).__qualname__} can't be stored; use text, numbers, dates, "
        "UUIDs or enums as keys"
    )


def _datetime(value: datetime, depth: int) -> Any:
    offset = value.utcoffset()
    if offset is not None and offset % timedelta(minutes=1):
        try:
            value = value.astimezone(UTC)  # ISO 8601 has no seconds in offsets
        except OverflowError as error:
            raise Unstorable("a datetime is out of range in UTC") from error
    elif type(value) is not datetime:
        parts = (value.year, value.month, value.day, value.hour, value.minute, value.second)
        value = datetime(*parts, value.microsecond, tzinfo=value.tzinfo)
    return msgspec.to_builtins(value)


def _date(value: date, depth: int) -> str:
    return date.isoformat(value)


def _time(value: time, depth: int) -> Any:
    offset = value.utcoffset()
    if offset is not None and offset % timedelta(minutes=1):
        raise Unstorable("a time whose UTC offset has seconds can't be stored")
    return time.isoformat(value)


def _timedelta(value: timedelta, depth: int) -> Any:
    return msgspec.to_builtins(timedelta(value.days, value.seconds, value.microseconds))


def _enum(value: Enum, depth: int) -> Any:
    return to_native(value.value, depth)


def _object_encoder(names: list[str]) -> _Encoder:
    """Encode the named attributes; an attribute never set is left out."""

    def encode(value: Any, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        name = ""
        try:
            for name in names:
                item = getattr(value, name, msgspec.UNSET)
                if type(item) in SCALARS:
                    out[name] = item
                elif item is not msgspec.UNSET:
                    out[name] = to_native(item, depth)
        except Unstorable as error:
            error.path.append(f".{name}")
            raise
        return out

    return encode


def _struct_encoder(cls: type[msgspec.Struct]) -> _Encoder:
    config = cls.__struct_config__
    fields = list(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    with_default = cls.__struct_fields__[-len(cls.__struct_defaults__) :]
    defaults = dict(zip(with_default, cls.__struct_defaults__, strict=False))
    tag = {config.tag_field: config.tag} if config.tag_field else {}

    def encode(value: Any, depth: int) -> Any:
        out: dict[str, Any] = dict(tag)
        name = ""
        try:
            for name, wire in fields:
                item = getattr(value, name)
                if config.omit_defaults and name in defaults and _is_default(item, defaults[name]):
                    continue
                if type(item) in SCALARS:
                    out[wire] = item
                elif item is not msgspec.UNSET:
                    out[wire] = to_native(item, depth)
        except Unstorable as error:
            error.path.append(f".{name}")
            raise
        return out

    def encode_array(value: Any, depth: int) -> Any:
        values = [getattr(value, name) for name, _ in fields]
        return [*tag.values(), *_sequence(values, depth)]

    return encode_array if config.array_like else encode


def _is_default(item: Any, default: Any) -> bool:
    if item is default:
        return True
    factory = getattr(default, "factory", None)
    return factory in (list, dict, set) and type(item) is factory and not item


def _model_encoder(cls: Any) -> _Encoder:
    names = models.field_names(cls)

    def encode(value: Any, depth: int) -> Any:
        out = {name: _model_field(value, name, depth) for name in names if name in value.__dict__}
        if models.is_root_model(cls):
            return out["root"]
        return out | _mapping(models.extra_of(value), depth)

    return encode


def _model_field(value: Any, name: str, depth: int) -> Any:
    item = value.__dict__[name]
    try:
        return to_native(item, depth)
    except Unstorable as error:
        # Only a type that nobody but pydantic knows (a URL) is left to pydantic, never a secret,
        # which it would replace with asterisks.
        if type(item).__module__.partition(".")[0] == "pydantic" and not _is_secret(item):
            return to_native(models.dump_field(value, name), depth)
        error.path.append(f".{name}")
        raise


def _is_secret(value: Any) -> bool:
    return hasattr(value, "get_secret_value")


def _refuse(value: Any, depth: int) -> Any:
    if _is_secret(value):
        raise Unstorable("a secret is not stored in plain text; pass a reference to it instead")
    raise Unstorable(f"a value of type {_name(type(value))} can't be stored")


def _name(cls: type) -> str:
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _learn(cls: type) -> _Encoder:
    if len(_ENCODERS) >= _MAX_ENCODERS:
        for known in [known for known in _ENCODERS if known not in _BY_BASE]:
            del _ENCODERS[known]
    encoder = _ENCODERS[cls] = _choose(cls)
    return encoder


def _choose(cls: Any) -> _Encoder:
    if issubclass(cls, Enum):
        return _enum
    if models.is_model(cls):
        return _model_encoder(cls)
    if issubclass(cls, msgspec.Struct):
        return _struct_encoder(cls)
    if dataclasses.is_dataclass(cls):
        return _object_encoder([field.name for field in dataclasses.fields(cls)])
    if hasattr(cls, "__attrs_attrs__"):
        return _object_encoder([field.name for field in cls.__attrs_attrs__])
    for base in cls.__mro__:
        if base in _BY_BASE:
            return _BY_BASE[base]
    return _mapping if issubclass(cls, Mapping) else _refuse


def _text(value: Any, depth: int) -> str:
    return str(value)


# `str.__str__(x)` and the like: a subclass may have its own `__str__`, which is not its value.
_BY_BASE: dict[type, _Encoder] = {
    list: _sequence,
    tuple: _sequence,
    deque: _sequence,
    dict: _mapping,
    set: _set,
    frozenset: _set,
    str: lambda value, depth: str.__str__(value),
    int: lambda value, depth: int.__int__(value),
    float: lambda value, depth: float.__float__(value),
    bytes: lambda value, depth: bytes(memoryview(value)),
    bytearray: lambda value, depth: bytes(value),
    memoryview: lambda value, depth: bytes(value),
    datetime: _datetime,
    date: _date,
    time: _time,
    timedelta: _timedelta,
    Decimal: lambda value, depth: Decimal.__str__(value),
    UUID: _text,
    PurePath: _text,
    ObjectId: _text,
    ZoneInfo: lambda value, depth: value.key if value.key else _refuse(value, depth),
    IPv4Address: _text,
    IPv6Address: _text,
    IPv4Network: _text,
    IPv6Network: _text,
}
_ENCODERS: dict[type, _Encoder] = dict(_BY_BASE)

"""From an annotation to a function that reads BSON-native values as that type.

msgspec reads what it supports at C speed. The rest is put together here: unions that msgspec
refuses, classes and containers that have them inside, and enums and literals of odd values.
"""

from __future__ import annotations

import inspect
import types
from collections import abc
from enum import Enum
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from bson.int64 import Int64

from streamline.codec.customs import custom_reader, unknown_reader
from streamline.codec.mismatch import Mismatch, Reader, at, describe, expect
from streamline.codec.natives import to_native
from streamline.codec.objects import object_reader
from streamline.codec.unions import union_reader

# Annotations made on the fly must not pile up.
_MAX_READERS = 4096
_READERS: dict[Any, Reader] = {}
_HOOKS: dict[Any, Reader] = {}
_ARRAYS: dict[Any, type] = {
    list: list, set: set, frozenset: frozenset, abc.Sequence: list, abc.MutableSequence: list,
    abc.Collection: list, abc.Iterable: list, abc.Set: set, abc.MutableSet: set,
}  # fmt: skip
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)


def fresh(native: Any) -> Any:
    """Copy a BSON-native value, containers and all."""
    return msgspec.to_builtins(native, builtin_types=(bytes,), str_keys=True, enc_hook=_plain)


def reader_for(type_: Any) -> Reader:
    """Return the reader of an annotation; it raises `Mismatch`, and may take parts as they are.

    Raises:
        Mismatch: The annotation itself can't be read.
    """
    try:
        found = _READERS.get(type_)
    except TypeError:  # unhashable, such as Annotated[int, {}]
        return _build(type_)
    if found is None:
        if len(_READERS) >= _MAX_READERS:
            _READERS.clear()
        found = _READERS[type_] = _build(type_)
    return found


def _build(type_: Any) -> Reader:
    if type_ is Any or type_ is inspect.Parameter.empty or type_ is object:
        return _identity
    if isinstance(type_, str | ForwardRef):
        raise Mismatch("the annotation is text that was never resolved to a type")
    custom = custom_reader(type_, reader_for)
    if custom is not None:
        return custom
    if _fits_msgspec(type_):
        return _via_msgspec(type_)
    return _by_shape(type_)


def _by_shape(type_: Any) -> Reader:
    origin, args = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return reader_for(args[0])
    if origin in (Union, types.UnionType):
        return union_reader(args, reader_for)
    if origin is Literal:
        return _one_of(args, args, type_)
    if hasattr(type_, "__supertype__"):
        return reader_for(type_.__supertype__)
    if hasattr(type_, "__value__"):  # `type X = ...` of Python 3.12
        return reader_for(type_.__value__)
    if isinstance(type_, TypeVar):
        if type_.__constraints__:
            return union_reader(type_.__constraints__, reader_for)
        return reader_for(type_.__bound__ or Any)
    if origin is tuple:
        return _tuple(args)
    if origin in _ARRAYS:
        return _array(_ARRAYS[origin], args[0])
    if origin in _MAPPINGS:
        return _mapping(*args)
    if isinstance(type_, type) and issubclass(type_, Enum):
        return _one_of([member.value for member in type_], list(type_), type_)
    found = object_reader(type_, reader_for)
    if found is None:
        raise Mismatch("streamline doesn't know how to read this annotation")
    return found


def _fits_msgspec(type_: Any) -> bool:
    try:
        msgspec.convert(None, type_, str_keys=True, dec_hook=_probe)
    except msgspec.ValidationError:
        pass
    except (NameError, AttributeError) as error:
        raise Mismatch(f"its annotations can't be resolved: {error}") from error
    except Exception:
        return False
    try:
        info = msgspec.inspect.type_info(type_)
    except TypeError:  # before msgspec 0.22: it sorts the values of a Literal, of whatever types
        return False
    return not _has_custom_key(info, set())


def _has_custom_key(info: Any, seen: set[int]) -> bool:
    """Whether a dict in it has keys of a class that msgspec would leave as text, unasked."""
    if id(info) in seen:
        return False
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.DictType):
        key = info.key_type
        members = key.types if isinstance(key, msgspec.inspect.UnionType) else (key,)
        if any(isinstance(member, msgspec.inspect.CustomType) for member in members):
            return True
    if isinstance(info, tuple):
        return any(_has_custom_key(part, seen) for part in info)
    if isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
        parts = (getattr(info, name) for name in info.__struct_fields__)
        return any(_has_custom_key(part, seen) for part in parts)
    return False


def _probe(type_: Any, value: Any) -> Any:
    raise ValueError


def _via_msgspec(type_: Any) -> Reader:
    def read(value: Any) -> Any:
        try:
            return msgspec.convert(value, type_, strict=True, str_keys=True, dec_hook=_hook)
        except msgspec.ValidationError as error:
            raise Mismatch.from_msgspec(error) from error

    return read


def _hook(type_: Any, value: Any) -> Any:
    """Read a class that msgspec doesn't know, inside one that it does."""
    if type_ is object:
        return value
    try:
        reader = _HOOKS.get(type_)
        if reader is None:
            if len(_HOOKS) >= _MAX_READERS:
                _HOOKS.clear()
            reader = custom_reader(type_, reader_for) or unknown_reader(type_)
            _HOOKS[type_] = reader
    except TypeError:
        reader = custom_reader(type_, reader_for) or unknown_reader(type_)
    return reader(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Int64):
        return int(value)
    raise Mismatch(f"a stored value of type {type(value).__name__} is not a payload's")


def _identity(value: Any) -> Any:
    return value


def _array(make: type, item: Any) -> Reader:
    def read(value: Any) -> Any:
        expect(list, value, "array")
        reader = reader_for(item)
        return make(at(reader, part, f"[{index}]") for index, part in enumerate(value))

    return read


def _tuple(items: tuple[Any, ...]) -> Reader:
    if len(items) == 2 and items[1] is Ellipsis:
        return _array(tuple, items[0])

    def read(value: Any) -> Any:
        expect(list, value, "array")
        if len(value) != len(items):
            raise Mismatch(f"Expected `array` of length {len(items)}, got {len(value)}")
        pairs = enumerate(zip(items, value, strict=True))
        return tuple(at(reader_for(item), part, f"[{index}]") for index, (item, part) in pairs)

    return read


def _mapping(key: Any, item: Any) -> Reader:
    def read(value: Any) -> Any:
        expect(dict, value, "object")
        key_reader, reader = _key_reader(key), reader_for(item)
        return {
            at(key_reader, name, f".{name}"): at(reader, part, f".{name}")
            for name, part in value.items()
        }

    return read


def _key_reader(type_: Any) -> Reader:
    """Keys are stored as text, whatever they are."""
    if _fits_msgspec(dict[type_, Any]):
        whole = reader_for(dict[type_, Any])
        return lambda text: next(iter(whole({text: None})))
    reader = reader_for(type_)

    def read(text: str) -> Any:
        try:
            return reader(text)
        except Mismatch:
            return reader(msgspec.convert(text, int | float, strict=False))

    return read


def _one_of(values: Any, results: Any, type_: Any) -> Reader:
    """Read what msgspec's enums and literals can't hold: floats, tuples, bytes, None."""
    choices = [(to_native(value), result) for value, result in zip(values, results, strict=True)]

    def read(value: Any) -> Any:
        for native, result in choices:
            if type(native) is type(value) and native == value:
                return result
        raise Mismatch(f"Invalid value {value!r} for {describe(type_)}")

    return read

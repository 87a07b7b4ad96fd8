"""Readers of classes with fields that msgspec refuses because of a field's type.

Dataclasses, attrs classes, Structs, NamedTuples and TypedDicts; built as msgspec builds them:
without `__init__`, the missing fields from their defaults.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, NotRequired, Required, get_args, get_origin

import msgspec

from streamline.codec.mismatch import Mismatch, Reader, Resolve, at, expect

_MISSING: Any = object()
_WRAPPERS = (Required, NotRequired, typing.Final, typing.ClassVar)


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One field: its attribute, its stored key, its annotation and how to default it."""

    name: str
    key: str
    type: Any
    default: Callable[[], Any] | None = None


def fields_of(type_: Any) -> list[Field] | None:
    """Return the stored fields of such a class (or generic alias of one), or None for others.

    Raises:
        Mismatch: An annotation in it names something that isn't there.
    """
    cls: Any = get_origin(type_) or type_
    found = _declared(cls)
    if found is None:
        return None
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise Mismatch(f"its annotations can't be resolved: {error}") from error
    bound = dict(zip(getattr(cls, "__parameters__", ()), get_args(type_), strict=False))
    return [
        Field(name=name, key=key, type=_bind(hints.get(name, Any), bound), default=default)
        for name, key, default in found
    ]


def tag_of(type_: Any) -> tuple[str, Any] | None:
    """Return the tag of a Struct, as key and value."""
    cls: Any = get_origin(type_) or type_
    if not (isinstance(cls, type) and issubclass(cls, msgspec.Struct)):
        return None
    config = cls.__struct_config__
    return (config.tag_field, config.tag) if config.tag_field else None


def object_reader(type_: Any, resolve: Resolve) -> Reader | None:
    """Return the reader of a class with fields, or None for other classes."""
    fields = fields_of(type_)
    if fields is None:
        return None
    cls: Any = get_origin(type_) or type_
    if issubclass(cls, tuple) or (_is_struct(cls) and cls.__struct_config__.array_like):
        return _array_reader(cls, fields, resolve, tag_of(cls))
    tag = tag_of(cls)

    def read(value: Any) -> Any:
        expect(dict, value, "object")
        if tag and value.get(tag[0], tag[1]) != tag[1]:
            raise Mismatch(f"Invalid value {value[tag[0]]!r}", f".{tag[0]}")
        return _make(cls, _read_fields(fields, value, resolve))

    return read


def _array_reader(cls: Any, fields: list[Field], resolve: Resolve, tag: Any) -> Reader:
    def read(value: Any) -> Any:
        expect(list, value, "array")
        if tag:
            if not value or value[0] != tag[1]:
                raise Mismatch(f"Expected the tag {tag[1]!r}", "[0]")
            value = value[1:]
        keyed = {field.key: item for field, item in zip(fields, value, strict=False)}
        return cls(**_read_fields(fields, keyed, resolve))

    return read


def _read_fields(fields: list[Field], value: dict[str, Any], resolve: Resolve) -> dict[str, Any]:
    out = {}
    for field in fields:
        if field.key in value:
            out[field.name] = at(resolve(field.type), value[field.key], f".{field.key}")
        elif field.default is None:
            raise Mismatch(f"Object missing required field `{field.key}`")
        elif (default := field.default()) is not _MISSING:
            out[field.name] = default
    return out


def _make(cls: Any, values: dict[str, Any]) -> Any:
    if _is_struct(cls):
        return cls(**values)
    if issubclass(cls, dict):
        return values
    made = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    hook = getattr(cls, "__attrs_post_init__", None)
    if dataclasses.is_dataclass(cls) and not _has_init_vars(cls):
        hook = getattr(cls, "__post_init__", None)
    if hook is not None:
        try:
            hook(made)
        except (ValueError, TypeError) as error:
            raise Mismatch(str(error)) from error
    return made


def _declared(cls: Any) -> list[tuple[str, str, Callable[[], Any] | None]] | None:
    if not isinstance(cls, type):
        return None
    if _is_struct(cls):
        return [
            (f.name, f.encode_name, _default_of(f.default, f.default_factory, msgspec.NODEFAULT))
            for f in msgspec.structs.fields(cls)
        ]
    if dataclasses.is_dataclass(cls):
        return [
            (f.name, f.name, _default_of(f.default, f.default_factory, dataclasses.MISSING))
            for f in dataclasses.fields(cls)
        ]
    if hasattr(cls, "__attrs_attrs__"):
        return [(f.name, f.name, _attrs_default(f.default)) for f in cls.__attrs_attrs__]
    if typing.is_typeddict(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        return [(k, k, None if _is_required(cls, k, hints[k]) else _left_out) for k in hints]
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        defaults: dict[str, Any] = cls._field_defaults  # type: ignore[attr-defined]
        names: tuple[str, ...] = getattr(cls, "_fields")  # noqa: B009 - pyright has no tuple._fields
        return [(n, n, _constant(defaults[n]) if n in defaults else None) for n in names]
    return None


def _is_required(cls: Any, key: str, hint: Any) -> bool:
    # `__required_keys__` misses what is said inside annotations that are still text.
    if get_origin(hint) in (Required, NotRequired):
        return get_origin(hint) is Required
    return key in cls.__required_keys__


def _left_out() -> Any:
    return _MISSING


def _default_of(default: Any, factory: Any, nothing: Any) -> Callable[[], Any] | None:
    if default is not nothing:
        return _constant(default)
    return factory if factory is not nothing else None


def _attrs_default(default: Any) -> Callable[[], Any] | None:
    if type(default).__name__ == "Factory":
        return default.factory if not default.takes_self else None
    return None if getattr(default, "name", None) == "NOTHING" else _constant(default)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _bind(hint: Any, bound: dict[Any, Any]) -> Any:
    """Strip what only wraps a field's annotation, and put arguments in for type variables."""
    while get_origin(hint) in _WRAPPERS:
        (hint,) = get_args(hint)
    if isinstance(hint, typing.TypeVar):
        return bound.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if bound and parameters and not isinstance(hint, type):
        return hint[tuple(bound.get(parameter, Any) for parameter in parameters)]
    return hint


def _is_struct(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, msgspec.Struct)


def _has_init_vars(cls: Any) -> bool:
    # The only trace that dataclasses keep of InitVar pseudo-fields.
    return any(
        field._field_type is dataclasses._FIELD_INITVAR  # type: ignore[attr-defined]
        for field in cls.__dataclass_fields__.values()
    )

"""Annotations as data, so that a sender can check a payload for a run of another process.

A reference is a text, `module:qualname`, for a class; a list, a word and what it holds, for the
rest: `["generic", "builtins:list", ["builtins:int"]]`, `["union", ...]`, `["literal", ...]`.
It may come from anyone who can write to the database: resolving it looks up loaded classes and
combines them, and neither imports nor evaluates anything.
"""

from __future__ import annotations

import inspect
import types
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from streamline.codec.loaded import class_name, loaded_class

_MAX_DEPTH = 20
_MAX_MEMBERS = 100
_Reference = str | list[Any]


class _Unknown(Exception):
    """The annotation can't be described, or the reference can't be resolved."""


def type_reference(type_: Any) -> Any | None:
    """Describe an annotation as BSON-native data, or return None where that is impossible.

    The metadata of `Annotated` is dropped; classes that no module holds can't be described.
    """
    try:
        return _describe(type_, 0)
    except (_Unknown, RecursionError):
        return None


def resolve_type(reference: Any) -> Any | None:
    """Return the annotation that a reference describes, or None if it isn't known here."""
    try:
        return _resolve(reference, 0)
    except Exception:  # whatever a hostile combination makes typing raise
        return None


def _describe(type_: Any, depth: int) -> _Reference:
    if depth > _MAX_DEPTH:
        raise _Unknown
    if type_ is Any or type_ is inspect.Parameter.empty:
        return ["any"]
    if type_ is None or type_ is type(None):
        return ["none"]
    origin, args = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return _describe(args[0], depth + 1)
    if origin in (Union, types.UnionType):
        return ["union", *(_describe(arg, depth + 1) for arg in args)]
    if origin is Literal:
        return ["literal", *(_describe_literal(arg) for arg in args)]
    if hasattr(type_, "__supertype__"):  # NewType
        return _describe(type_.__supertype__, depth + 1)
    if isinstance(type_, TypeVar):
        return _describe(type_.__bound__ or Any, depth + 1)
    if origin is not None:
        return _describe_generic(origin, args, depth)
    return _describe_class(type_)


def _describe_generic(origin: Any, args: tuple[Any, ...], depth: int) -> _Reference:
    held = [["..."] if arg is Ellipsis else _describe(arg, depth + 1) for arg in args]
    return ["generic", _describe_class(origin), held]


def _describe_class(cls: Any) -> _Reference:
    if not isinstance(cls, type):
        raise _Unknown
    metadata = getattr(cls, "__pydantic_generic_metadata__", None)
    if metadata and metadata["origin"] is not None:
        # pydantic makes a class of each `Model[int]`, and keeps it in no module.
        return _describe_generic(metadata["origin"], metadata["args"], 0)
    name = class_name(cls)
    if loaded_class(name) is not cls:
        raise _Unknown
    return name


def _describe_literal(value: Any) -> Any:
    if isinstance(value, Enum):
        return ["member", _describe_class(type(value)), value.name]
    if value is None or type(value) in (str, int, bool, bytes):
        return value
    raise _Unknown


def _resolve(reference: Any, depth: int) -> Any:
    if isinstance(reference, str):
        return _resolve_class(reference)
    if depth > _MAX_DEPTH or not isinstance(reference, list) or not reference:
        raise _Unknown
    kind, *rest = reference
    if len(rest) > _MAX_MEMBERS:
        raise _Unknown
    if kind == "any" and not rest:
        return Any
    if kind == "none" and not rest:
        return type(None)
    if kind == "union" and rest:
        return Union[tuple(_resolve(part, depth + 1) for part in rest)]  # noqa: UP007
    if kind == "literal" and rest:
        return Literal[tuple(_resolve_literal(part) for part in rest)]
    if kind == "generic" and len(rest) == 2:
        return _resolve_generic(rest[0], rest[1], depth)
    raise _Unknown


def _resolve_class(name: Any) -> type:
    cls = loaded_class(name)
    if cls is None:
        raise _Unknown
    return cls


def _resolve_generic(name: Any, held: Any, depth: int) -> Any:
    origin: Any = _resolve_class(name)
    if not isinstance(held, list) or len(held) > _MAX_MEMBERS:
        raise _Unknown
    args = tuple(Ellipsis if part == ["..."] else _resolve(part, depth + 1) for part in held)
    if Ellipsis in args and not (
        name == "builtins:tuple" and len(args) == 2 and args[1] is Ellipsis
    ):
        raise _Unknown
    if origin.__module__ in ("builtins", "collections", "collections.abc"):
        return types.GenericAlias(origin, args)
    # Only what is known to make a type of it: any class may define __class_getitem__.
    if not getattr(origin, "__parameters__", ()) and not _is_generic_model(origin):
        raise _Unknown
    return origin[args]


def _is_generic_model(cls: Any) -> bool:
    metadata = cls.__dict__.get("__pydantic_generic_metadata__")
    return bool(metadata and metadata["parameters"])


def _resolve_literal(value: Any) -> Any:
    if isinstance(value, list):
        kind, name, member = value
        cls: Any = _resolve_class(name)
        if kind != "member" or not issubclass(cls, Enum):
            raise _Unknown
        return cls.__members__[member]
    if value is None or type(value) in (str, int, bool, bytes):
        return value
    raise _Unknown

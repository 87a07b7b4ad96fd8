"""From a `Failure` back to an exception, of the original class where this process has it.

The class's own `__init__` and `__new__` are not called: their parameters needn't be `args`, and
they may have effects. What the exception held is put back instead.
"""

from __future__ import annotations

import types
import typing
from datetime import timedelta
from typing import Any

import msgspec

from streamline.codec.failure import Failure, Origin, encode_exception, set_origin
from streamline.codec.loaded import loaded_class
from streamline.codec.objects import fields_of
from streamline.codec.payload import decode
from streamline.errors import (
    ErrorCode,
    MaxRetriesExceeded,
    NonDeterminism,
    RetryAfter,
    RunFailed,
    StepFailed,
)

_HEAP_TYPE = 1 << 9
# Attributes without an annotation in their class whose stored form is another type.
_KNOWN: dict[type, dict[str, Any]] = {
    NonDeterminism: {"asked": tuple[str, ...]},
    RunFailed: {"error_code": ErrorCode},
    RetryAfter: {"delay": timedelta},
}


def decode_exception(failure: Failure, *, run_id: str | None = None) -> Exception:
    """Return the exception that a failure describes.

    Where its class isn't loaded here, isn't an `Exception`, or can't be rebuilt: a `StepFailed`
    (or `MaxRetriesExceeded`, if the code says so) that names it.

    Args:
        failure: What `encode_exception` made.
        run_id: The run it happened to, for the stand-in.
    """
    exc = _revive(failure, run_id) or _stand_in(failure, run_id)
    if failure.cause is not None:
        # Not an assignment: a frozen dataclass refuses it.
        object.__setattr__(exc, "__cause__", decode_exception(failure.cause, run_id=run_id))
    if failure.notes:
        object.__setattr__(exc, "__notes__", list(failure.notes))
    set_origin(exc, Origin(failure, not _is_faithful(exc, failure)))
    return exc


def _stand_in(failure: Failure, run_id: str | None) -> StepFailed:
    of_retries = failure.code == ErrorCode.MAX_RETRIES_EXCEEDED
    cls = MaxRetriesExceeded if of_retries else StepFailed
    name = failure.type.rpartition(":")[2]
    message = f"{name}: {failure.message}" if failure.message else name
    return cls(message, run_id=run_id, step=failure.step, type_name=failure.type)


def _revive(failure: Failure, run_id: str | None) -> Exception | None:
    cls = loaded_class(failure.type)
    if cls is None or not issubclass(cls, Exception):
        return None
    try:
        exc = _instance(cls, failure, run_id)
        _put_back(exc, failure.attributes)
    except Exception:
        return None
    return exc


def _instance(cls: type[Exception], failure: Failure, run_id: str | None) -> Exception:
    args = (failure.message,) if failure.args is None else _args(cls, failure.args)
    builtin: Any = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
    made: Exception
    if issubclass(cls, ExceptionGroup):
        parts = [decode_exception(part, run_id=run_id) for part in failure.parts]
        made = builtin.__new__(cls, args[0], parts)
    else:
        made = builtin.__new__(cls, *args)
        object.__setattr__(made, "args", args)
    if not isinstance(made, cls):
        raise TypeError
    return made


def _args(cls: type[Exception], stored: list[Any]) -> tuple[Any, ...]:
    """The args by the annotations of a dataclass's fields; those of other classes as stored."""
    fields = fields_of(cls) or []
    hints = [field.type for field in fields[: len(stored)]]
    hints += [Any] * (len(stored) - len(hints))
    return tuple(_typed(value, hint) for value, hint in zip(stored, hints, strict=True))


def _put_back(exc: Exception, attributes: dict[str, Any]) -> None:
    hints = _hints(type(exc))
    for name, stored in attributes.items():
        if name.startswith("__"):
            continue
        value = _typed(stored, hints.get(name, Any))
        member = _class_attribute(type(exc), name)
        if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
            # Not setattr: a frozen dataclass refuses it.
            object.__setattr__(exc, name, value)
        else:
            # Not setattr: a property's setter would run.
            exc.__dict__[name] = value


def _typed(stored: Any, hint: Any) -> Any:
    try:
        return decode(stored, hint, what="an attribute")
    except Exception:
        return decode(stored, Any, what="an attribute")


def _hints(cls: type) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for known, types_ in _KNOWN.items():
        if issubclass(cls, known):
            hints |= types_
    try:
        hints |= typing.get_type_hints(cls)
    except Exception:
        return hints
    return hints


def _class_attribute(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _is_faithful(exc: Exception, failure: Failure) -> bool:
    """Whether encoding the exception again gives the same, but for the traceback."""
    again = encode_exception(exc, code=failure.code, step=failure.step)
    return again == msgspec.structs.replace(failure, traceback=again.traceback)

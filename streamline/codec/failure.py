"""Exceptions as data: `Failure`, made of any exception whatever, and stored as native BSON."""

from __future__ import annotations

import traceback
import types
from collections.abc import Iterator
from typing import Any

import msgspec

from streamline.codec.loaded import class_name
from streamline.codec.payload import decode, encode
from streamline.errors import DataCorruption, StreamlineError, ValidationError

_MAX_CAUSES = 10
_MAX_PARTS = 20
_MAX_NOTES = 20
_HEAP_TYPE = 1 << 9
_MAX_FRAMES = 100
_MIN_LIMIT = 256
_ORIGIN = "__streamline_origin__"

# What the built-in exceptions hold outside of `args` and `__dict__`. `AttributeError.obj` and
# `NameError`'s frame are left out: they are the program's objects, not facts about the error.
_C_STATE: dict[type[BaseException], tuple[str, ...]] = {
    OSError: ("errno", "strerror", "filename", "filename2"),
    UnicodeDecodeError: ("encoding", "object", "start", "end", "reason"),
    UnicodeEncodeError: ("encoding", "object", "start", "end", "reason"),
    UnicodeTranslateError: ("object", "start", "end", "reason"),
    ImportError: ("msg", "name", "path"),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
    StopIteration: ("value",),
    AttributeError: ("name",),
    NameError: ("name",),
    SystemExit: ("code",),
}


class Failure(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """An exception as data; all values are BSON-native.

    `args` is None where they can't be carried; an attribute that can't be is left out.
    """

    code: str
    type: str
    message: str
    traceback: str = ""
    step: str | None = None
    args: list[Any] | None = None
    attributes: dict[str, Any] = {}
    notes: list[str] = []
    cause: Failure | None = None
    parts: list[Failure] = []


class Origin(msgspec.Struct, frozen=True):
    """What an exception was decoded from; it keeps it, for the traceback of where it happened.

    `exact_only_as_data`: the exception itself doesn't have all that the failure has.
    """

    failure: Failure
    exact_only_as_data: bool


def encode_exception(
    exc: BaseException, *, code: str, step: str | None = None, limit: int = 64 * 1024
) -> Failure:
    """Describe an exception; never raises, whatever the exception is like.

    Args:
        exc: The exception.
        code: What went wrong: an `ErrorCode`.
        step: The id of the step it left, if any.
        limit: About the largest size, in bytes; longer texts are cut, larger values left out.
    """
    return _encode(exc, str(code), step, limit, (exc,))


def failure_to_doc(failure: Failure) -> dict[str, Any]:
    """Return the failure as it is stored."""
    doc: dict[str, Any] = msgspec.to_builtins(failure, builtin_types=(bytes,))
    return doc


def failure_from_doc(doc: Any) -> Failure:
    """Read a stored failure.

    Raises:
        DataCorruption: The document isn't one.
    """
    try:
        failure: Failure = decode(doc, Failure, what="a stored error")
    except ValidationError as error:
        raise DataCorruption(str(error)) from error
    return failure


def _encode(
    exc: BaseException, code: str, step: str | None, limit: int, seen: tuple[BaseException, ...]
) -> Failure:
    """Describe an exception of which `seen` are those that led to it, itself included."""
    origin = origin_of(exc)
    if origin is not None and origin.exact_only_as_data:
        core = origin.failure
    else:
        core = Failure(
            code=code,
            type=_cut(_safely(lambda: class_name(type(exc))) or "builtins:Exception", 500),
            message=_cut(_message(exc), limit // 8),
            args=_args(exc, limit // 8),
            attributes=_attributes(exc, limit // 8),
            parts=_parts(exc, code, limit // 4, seen),
        )
    if step is None and origin is not None:
        step = origin.failure.step
    return msgspec.structs.replace(
        core,
        code=code,
        step=step,
        traceback=_cut_head(_traceback(exc, origin), limit // 8),
        notes=_notes(exc, limit // 16),
        cause=_cause(exc, code, limit // 4, seen),
    )


def origin_of(exc: BaseException) -> Origin | None:
    """Return what the exception was decoded from, if it was."""
    found = _safely(lambda: exc.__dict__.get(_ORIGIN))
    return found if isinstance(found, Origin) else None


def set_origin(exc: BaseException, origin: Origin) -> None:
    """Note what the exception was decoded from."""
    _safely(lambda: exc.__dict__.update({_ORIGIN: origin}))


def _cause(
    exc: BaseException, code: str, limit: int, seen: tuple[BaseException, ...]
) -> Failure | None:
    cause = exc.__cause__
    if cause is None or _is_enough(limit, seen) or any(cause is other for other in seen):
        return None
    return _encode(cause, _code_of(cause, code), None, limit, (*seen, cause))


def _parts(
    exc: BaseException, code: str, limit: int, seen: tuple[BaseException, ...]
) -> list[Failure]:
    if not isinstance(exc, BaseExceptionGroup) or _is_enough(limit, seen):
        return []
    parts = exc.exceptions[:_MAX_PARTS]
    share = limit // len(parts)
    return [_encode(part, _code_of(part, code), None, share, (*seen, part)) for part in parts]


def _is_enough(limit: int, seen: tuple[BaseException, ...]) -> bool:
    return limit < _MIN_LIMIT or len(seen) > _MAX_CAUSES


def _code_of(exc: BaseException, default: str) -> str:
    origin = origin_of(exc)
    if origin is not None:
        return origin.failure.code
    return str(getattr(type(exc), "code", default)) if isinstance(exc, StreamlineError) else default


def _message(exc: BaseException) -> str:
    text = _safely(lambda: str(exc))
    return text if isinstance(text, str) else f"<{type(exc).__name__} without a readable message>"


def _args(exc: BaseException, limit: int) -> list[Any] | None:
    args: Any = [exc.message] if isinstance(exc, BaseExceptionGroup) else exc.args
    found = _carried(list(args), limit)
    return found if isinstance(found, list) else None


def _attributes(exc: BaseException, limit: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in (_safely(lambda: dict(_state(exc))) or {}).items():
        native = _carried({name: value}, limit)
        if native is not None:
            out |= native
            limit -= len(repr(native))
    return out


def _state(exc: BaseException) -> Iterator[tuple[str, Any]]:
    """Yield what the exception holds besides its `args`."""
    for base in type(exc).__mro__:
        for name in _C_STATE.get(base, ()):
            if (value := getattr(exc, name, None)) is not None:
                yield name, value
        if base.__flags__ & _HEAP_TYPE:
            for name, member in vars(base).items():
                if isinstance(member, types.MemberDescriptorType) and hasattr(exc, name):
                    yield name, getattr(exc, name)
    for name, value in exc.__dict__.items():
        if not name.startswith("__"):
            yield name, value


def _notes(exc: BaseException, limit: int) -> list[str]:
    notes = _safely(lambda: [note for note in exc.__notes__ if isinstance(note, str)]) or []
    kept = notes[:_MAX_NOTES]
    return [_cut(note, limit // len(kept)) for note in kept]


def _traceback(exc: BaseException, origin: Origin | None) -> str:
    before = origin.failure.traceback if origin is not None else ""
    if before and exc.__traceback__ is None:
        return before
    # Not format_exception: it walks the causes and the parts, which are carried by themselves, and
    # of a group of groups there may be very many.
    frames = _safely(lambda: traceback.format_tb(exc.__traceback__, limit=-_MAX_FRAMES)) or []
    here = "".join(["Traceback (most recent call last):\n", *frames]) if frames else ""
    here += f"{type(exc).__qualname__}: {_cut(_message(exc), 1000)}\n"
    return f"{before}\nRaised again here:\n\n{here}" if before else here


def _carried(value: Any, limit: int) -> Any:
    return _safely(lambda: encode(value, what="it", limit=limit))


def _safely(read: Any) -> Any:
    """Call what may run the exception's own, possibly broken, code."""
    try:
        return read()
    except Exception:
        return None


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str, limit: int) -> str:
    text = _storable(text)
    if len(text) <= limit:
        return text
    marker = f"... [{len(text):,} characters in all]"
    return text[: max(limit - len(marker), 0)] + marker


def _cut_head(text: str, limit: int) -> str:
    """Keep the end of a traceback: where the exception was raised."""
    text = _storable(text)
    return text if len(text) <= limit else f"[... cut]\n{text[-limit:]}"

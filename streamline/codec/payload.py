"""Payloads: what users pass in and steps return, to BSON-native values and back by annotation."""

from __future__ import annotations

from typing import Any

import bson
from bson.errors import InvalidDocument

from streamline.codec.annotations import fresh, reader_for
from streamline.codec.large import LargePayload
from streamline.codec.mismatch import Mismatch, describe
from streamline.codec.natives import SCALARS, Unstorable, to_native
from streamline.errors import PayloadTooLarge, ValidationError

# Natives of at most eight bytes; an int may be too large.
_TINY = frozenset({type(None), bool, float})
_MIN_INT, _MAX_INT = -(2**63), 2**63 - 1


def encode(value: Any, *, what: str, limit: int, inline: int | None = None) -> Any:
    """Return the BSON-native form of a value: a fresh copy that can be stored as it is.

    Args:
        value: Any value that has one: see `natives.py`.
        what: A phrase for error messages, such as `the result of step 'charge'`.
        limit: The largest size, in bytes of BSON.
        inline: Beyond this size a `LargePayload` is returned instead.

    Raises:
        ValidationError: It can't be stored; the message says what part of it.
        PayloadTooLarge: It is larger than `limit`.
    """
    if type(value) in _TINY or (type(value) is int and _MIN_INT <= value <= _MAX_INT):
        return value
    try:
        native = to_native(value)
        data = bson.encode({"v": native})
    except Unstorable as error:
        raise ValidationError(f"Can't store {what}: {error}") from error
    except OverflowError as error:
        raise ValidationError(
            f"Can't store {what}: it has an integer beyond 64 bits; pass it as text"
        ) from error
    except UnicodeError as error:
        raise ValidationError(f"Can't store {what}: it has text that isn't Unicode") from error
    except RecursionError as error:
        raise ValidationError(f"Can't store {what}: it is nested too deep") from error
    except InvalidDocument as error:
        reason = "a key has a NUL character" if "null" in str(error).lower() else str(error)
        raise ValidationError(f"Can't store {what}: {reason}") from error
    except Exception as error:  # a property or an iterator of the user's own that fails
        raise ValidationError(
            f"Can't store {what}: {type(error).__name__} while reading it: {error}"
        ) from error
    if len(data) > limit:
        raise PayloadTooLarge(
            f"Can't store {what}: it takes {len(data):,} bytes and {limit:,} are allowed. "
            "Store it elsewhere and pass a reference to it"
        )
    # The bytes are kept, so that no large value is encoded twice.
    return native if inline is None or len(data) <= inline else LargePayload(data)


def decode(encoded: Any, type_: Any, *, what: str) -> Any:
    """Build a value of the annotated type; nothing in it is shared with `encoded`.

    Args:
        encoded: What `encode` returned, or what a store read with `CODEC_OPTIONS`; no reference.
        type_: An annotation; `Any` and `inspect.Parameter.empty` take the value as it is.
        what: A phrase for error messages.

    Raises:
        ValidationError: The value doesn't fit the annotation; the message says where.
    """
    if type(encoded) is type_ and type_ in SCALARS:
        return encoded
    try:
        if type(encoded) is LargePayload:
            value = encoded.native()
        else:
            value = encoded if type(encoded) in SCALARS else fresh(encoded)
        return reader_for(type_)(value)
    except Mismatch as error:
        reason = str(error)
    except RecursionError:
        reason = "it is nested too deep"
    except Exception as error:  # a constructor of the user's own that fails
        reason = f"{type(error).__name__}: {error}"
    raise ValidationError(f"Can't read {what} as {describe(type_)}: {reason}")

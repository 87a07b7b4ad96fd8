"""Ids of runs and messages (UUIDv7: they sort by creation), and which names are acceptable."""

from __future__ import annotations

import hashlib
import os
import re
import time

from streamline.errors import ValidationError

_NAME = re.compile(r"[A-Za-z0-9_.:<>-]{1,100}")
MAX_ID = 500


def new_id() -> str:
    """Return a new UUIDv7 (RFC 9562) as text."""
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    digits = f"{number:032x}"  # as `str(UUID(int=number))`, in a third of the time
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def child_id(run_id: str, command_id: str, epoch: int) -> str:
    """Return the id of a child's run, the same whenever its parent asks for it.

    Args:
        run_id: The parent's.
        command_id: What the parent called.
        epoch: How often the parent was begun anew; then its children are others.
    """
    whole = f"{run_id}/{command_id}" + (f"~{epoch}" if epoch else "")
    if len(whole) <= MAX_ID:
        return whole
    # Of children of children of children. Its beginning says where it comes from.
    digest = hashlib.sha256(whole.encode()).hexdigest()
    return f"{whole[: MAX_ID - len(digest) - 1]}~{digest}"


def check_name(name: str, *, what: str) -> str:
    """Return a name of a workflow, step, channel or wait if it is acceptable.

    Raises:
        ValidationError: It is empty, longer than 100 characters, or holds other characters than
            letters, digits and `_ . : < > -`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValidationError(
            f"{what} can't be named {name!r}: use 1 to 100 letters, digits and _ . : < > -"
        )
    return name


def check_id(given: str, *, what: str) -> str:
    """Return an id that a caller gave if it is acceptable.

    What isn't text is refused too: it may come from a request's JSON, and `{"$gt": ""}` in a filter
    would fit any run.

    Raises:
        ValidationError: It isn't text of 1 to 500 characters without NUL.
    """
    if isinstance(given, str) and 0 < len(given) <= MAX_ID and "\x00" not in given:
        try:
            given.encode()
        except UnicodeEncodeError:
            pass
        else:
            return given
    shown = repr(given)
    raise ValidationError(
        f"{what} must be text of 1 to {MAX_ID} characters, without NUL and valid in UTF-8: "
        f"{shown[:50]}{'...' if len(shown) > 50 else ''}"
    )

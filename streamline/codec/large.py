"""Payloads too large for their run's document: at hand (`LargePayload`), and away (`PayloadRef`).

Knows neither runs nor stores; which payloads are moved out, and where to, is theirs.
"""

from __future__ import annotations

import gc
import os
import struct
from datetime import datetime
from typing import Any

import bson
import msgspec
from bson.objectid import ObjectId

from streamline.codec.limits import DOCUMENT_LIMIT
from streamline.codec.options import CODEC_OPTIONS


class PayloadRef(msgspec.Struct, frozen=True, gc=False):
    """Stands in the place of a payload that is kept outside of its run's document.

    Stored as `{"payload": ObjectId(...), "size": 104857600}`. No encoded value holds an ObjectId
    (`encode` makes text of one), so nothing that users pass can be taken for a reference.
    """

    payload: ObjectId
    size: int
    """Bytes of BSON, before encryption."""

    @classmethod
    def new(cls, now: datetime, size: int) -> PayloadRef:
        """Make a reference to what will be stored now, by the server's clock."""
        seconds = struct.pack(">I", int(now.timestamp()))
        return cls(ObjectId(seconds + os.urandom(8)), size)

    @property
    def made_at(self) -> datetime:
        """When it was made, by the server's clock, to the second."""
        made_at: datetime = self.payload.generation_time
        return made_at


class LargePayload:
    """An encoded payload that is to be kept outside, while its content is at hand.

    It goes where a native value goes: into entries, messages and inputs, and to `decode`; but never
    to a store, which gets the reference.

    Args:
        data: The BSON of `{"v": <native value>}`.
        ref: The reference to it, if it is kept outside already.
    """

    __slots__ = ("data", "fence", "ref", "stored")

    def __init__(self, data: bytes, ref: PayloadRef | None = None) -> None:
        self.data: bytes = data
        self.ref: PayloadRef | None = ref
        self.stored: bool = ref is not None
        self.fence: int | None = None

    def __repr__(self) -> str:
        return f"<LargePayload of {len(self.data):,} bytes>"

    def native(self) -> Any:
        """Return the BSON-native value, a new one each time."""
        # A million new objects set off collections that find nothing: twice the time (measured).
        # This one call holds the interpreter's lock, so nobody else goes without.
        collects = gc.isenabled()
        gc.disable()
        try:
            return bson.decode(self.data, codec_options=CODEC_OPTIONS)["v"]
        finally:
            if collects:
                gc.enable()


def lift(value: Any) -> Any:
    """Return the reference that a stored value stands for; any other value as it is."""
    if type(value) is dict and len(value) == 2:
        payload, size = value.get("payload"), value.get("size")
        if isinstance(payload, ObjectId) and isinstance(size, int):
            return PayloadRef(payload, int(size))
    return value


def native_of(value: Any) -> Any:
    """Return the native value of a payload at hand, large or not."""
    return value.native() if type(value) is LargePayload else value


class Dropped(msgspec.Struct, frozen=True, gc=False):
    """What is left in memory of a payload that is too large to be kept there."""

    size: int


def kept(value: Any) -> Any:
    """Return what is kept in memory of a payload beside its decoded value."""
    if type(value) is LargePayload and len(value.data) > DOCUMENT_LIMIT:
        return Dropped(len(value.data))
    return value


def without_content(value: Any) -> Any:
    """Return the reference to a large payload that is stored; any other value as it is."""
    return value.ref if type(value) is LargePayload and value.stored else value

"""How stores must read BSON, so that what comes back equals what `encode` made."""

from __future__ import annotations

from typing import Any

from bson.codec_options import CodecOptions, TypeDecoder, TypeRegistry
from bson.dbref import DBRef
from bson.int64 import Int64


class _PlainInt(TypeDecoder):
    """Make `Int64` a plain int: msgspec and `type(x) is int` refuse the subclass."""

    @property
    def bson_type(self) -> Any:
        return Int64

    def transform_bson(self, value: Any) -> int:
        return int(value)


class _PlainReference(TypeDecoder):
    """Keep a mapping with `$ref` and `$id` keys a mapping: JSON schemas have such keys too."""

    @property
    def bson_type(self) -> Any:
        return DBRef

    def transform_bson(self, value: Any) -> dict[str, Any]:
        return dict(value.as_doc())


CODEC_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True, type_registry=TypeRegistry([_PlainInt(), _PlainReference()])
)

"""Values and exceptions to BSON-native data and back."""

from streamline.codec.failure import (
    Failure,
    encode_exception,
    failure_from_doc,
    failure_to_doc,
)
from streamline.codec.large import (
    Dropped,
    LargePayload,
    PayloadRef,
    kept,
    lift,
    native_of,
    without_content,
)
from streamline.codec.limits import DOCUMENT_LIMIT, INLINE_LIMIT, PAYLOAD_LIMIT, Limits
from streamline.codec.options import CODEC_OPTIONS
from streamline.codec.payload import decode, encode
from streamline.codec.revival import decode_exception
from streamline.codec.sealing import AesGcm, PayloadCodec
from streamline.codec.typeref import resolve_type, type_reference

__all__ = [
    "CODEC_OPTIONS",
    "DOCUMENT_LIMIT",
    "INLINE_LIMIT",
    "PAYLOAD_LIMIT",
    "AesGcm",
    "Dropped",
    "Failure",
    "LargePayload",
    "Limits",
    "PayloadCodec",
    "PayloadRef",
    "decode",
    "decode_exception",
    "encode",
    "encode_exception",
    "failure_from_doc",
    "failure_to_doc",
    "kept",
    "lift",
    "native_of",
    "resolve_type",
    "type_reference",
    "without_content",
]

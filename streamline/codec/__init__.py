"""Values and exceptions to BSON-native data and back."""

from streamline.codec.options import CODEC_OPTIONS
from streamline.codec.payload import decode, encode

__all__ = ["CODEC_OPTIONS", "decode", "encode"]

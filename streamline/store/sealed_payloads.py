"""Payloads kept outside of their runs' documents, sealed: whole, and bound to their place."""

from __future__ import annotations

from typing import Any

import bson

from streamline.codec import CODEC_OPTIONS, PayloadCodec
from streamline.errors import DataCorruption, StreamlineError

_SEALED = "sealed"


def seal_payload(codec: PayloadCodec, data: bytes, run_id: str, place: str) -> bytes:
    """Return a document that holds another one, sealed."""
    return bson.encode({_SEALED: codec.encode(data, run_id=run_id, field=place)})


def open_payload(codec: PayloadCodec, stored: bytes, run_id: str, place: str) -> bytes:
    """Return the document that was sealed.

    Raises:
        DataCorruption: It can't be opened.
    """
    try:
        found: dict[str, Any] = bson.decode(stored, codec_options=CODEC_OPTIONS)
        if found.keys() != {_SEALED} and codec.accepts_plain:
            return stored
        opened = codec.decode(found[_SEALED], run_id=run_id, field=place)
        if not isinstance(opened, bytes):
            raise TypeError(f"it holds {type(opened).__name__}, not bytes")
        return opened
    except StreamlineError:
        raise
    except Exception as error:  # what isn't a sealed document; a codec of the user's own that fails
        raise DataCorruption(
            f"The payload {place!r} of run {run_id!r} can't be opened: "
            f"{type(error).__name__}: {error}",
            run_id=run_id,
        ) from error

"""`Limits`: how large payloads may be, and from which size on they are kept outside."""

from __future__ import annotations

import msgspec

from streamline.errors import ValidationError

PAYLOAD_LIMIT = 128 * 1024 * 1024
INLINE_LIMIT = 256 * 1024
DOCUMENT_LIMIT = 3 * 1024 * 1024
# A BSON document's length is a signed 32-bit number; the rest is room for an encrypted envelope.
_MAX_PAYLOAD = 2**31 - 2**20


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes of BSON.

    Raises:
        ValidationError: One of them makes no sense.
    """

    payload: int = PAYLOAD_LIMIT
    """The largest payload: arguments, a result, an output, a message."""
    inline: int = INLINE_LIMIT
    """The largest of these that is kept in the run's document."""

    def __post_init__(self) -> None:
        if not 0 < self.payload <= _MAX_PAYLOAD:
            raise ValidationError(
                f"payload_limit must be from 1 to {_MAX_PAYLOAD:,} bytes, not {self.payload!r}"
            )
        # What is in the document is copied with every entry that is moved out of it.
        if not 0 <= self.inline <= DOCUMENT_LIMIT:
            raise ValidationError(
                f"inline_limit must be from 0 to {DOCUMENT_LIMIT:,} bytes, not {self.inline!r}"
            )

    @property
    def document(self) -> int:
        """The largest value that is always kept in the document, such as the context."""
        return min(self.payload, DOCUMENT_LIMIT)

"""`JournalTail`: which entries a run's document holds, and when they are to be moved out of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import bson

from streamline.codec import LargePayload, PayloadRef, without_content
from streamline.model import Entry

MAX_ENTRIES = 200
MAX_BYTES = 256 * 1024
"""Past this, appending to the document costs more with each step; see DESIGN, long journals."""
_REFERENCE = 50


class JournalTail:
    """The entries in the document, and those applied but not committed yet."""

    def __init__(self, base: int, entries: Iterable[Entry]) -> None:
        self.base: int = base
        self.stored: list[Entry] = list(entries)
        self.pending: list[Entry] = []
        self.pending_bytes: int = 0
        self._outside_bytes = 0  # of those pending, which won't be in the document
        self._stored_bytes = sum(size_of(entry) for entry in self.stored)

    def __len__(self) -> int:
        """Return how many entries are stored, the archived ones included."""
        return self.base + len(self.stored)

    def append(self, entry: Entry) -> None:
        """Add an entry that is applied and waits for its commit."""
        self.pending.append(entry)
        self.pending_bytes += size_of(entry)
        if type(entry.value) is LargePayload:
            self._outside_bytes += len(entry.value.data)

    @property
    def has_large(self) -> bool:
        """Whether a payload is pending that is to be kept outside of the document."""
        return self._outside_bytes > 0

    def clear(self) -> None:
        """Forget what is pending."""
        self.pending.clear()
        self.pending_bytes = self._outside_bytes = 0

    def to_archive(self) -> tuple[Entry, ...]:
        """Return the entries that the next commit should move out; none most of the time."""
        if not self.pending:
            return ()
        full = len(self.stored) >= MAX_ENTRIES or self._stored_bytes >= MAX_BYTES
        return tuple(self.stored) if full else ()

    def landed(self, archived: int) -> None:
        """Take in that the pending entries were committed, and so many others moved out."""
        if archived:
            self.base += archived
            self.stored.clear()
            self._stored_bytes = 0
        if self.has_large:
            # The content is in the body now, and in the store.
            self.pending = [e.with_value(without_content(e.value)) for e in self.pending]
        self.stored.extend(self.pending)
        self._stored_bytes += self.pending_bytes - self._outside_bytes
        self.clear()


def size_of(entry: Entry) -> int:
    """Return about how many bytes an entry takes."""
    size = 150 + _size(entry.value) + _size(entry.context)
    if entry.error is not None:
        size += len(entry.error.message) + len(entry.error.traceback)
    return size


def _size(value: Any) -> int:
    if value is None or isinstance(value, (bool, int, float)):
        return 8
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, LargePayload):
        return len(value.data)
    if isinstance(value, PayloadRef):
        return _REFERENCE
    return len(bson.encode({"v": value}))

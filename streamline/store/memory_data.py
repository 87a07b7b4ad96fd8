"""What the memory stores of several "processes" share: documents, archives, watchers.

Knows BSON and nothing of what a run's fields mean, but for `code`, `due_at` and `outbox_due`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import bson

from streamline.codec import CODEC_OPTIONS
from streamline.errors import PayloadTooLarge
from streamline.model import Entry, Notice
from streamline.store.encoding import Document
from streamline.store.memory_payloads import MemoryPayloads

MAX_DOCUMENT = 16 * 1024 * 1024


class Watcher:
    """The queue of one `watch`, in the loop that reads it. None ends it."""

    def __init__(self, besides: str | None) -> None:
        self.besides = besides
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Notice | None] = asyncio.Queue()

    def put(self, notice: Notice | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, notice)

    async def get(self) -> Notice | None:
        return await self._queue.get()


class MemoryData:
    """What the memory stores of several "processes" share. `lock` guards all of it."""

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        self.archives: dict[str, dict[int, Entry]] = {}
        self.payloads: MemoryPayloads = MemoryPayloads()
        self.watchers: list[Watcher] = []
        self._documents: dict[str, bytes] = {}
        # Beside the documents, so that a look for due runs needn't decode them all.
        self._due: dict[str, tuple[str, datetime]] = {}
        self._outboxes: dict[str, tuple[str, datetime]] = {}

    def __len__(self) -> int:
        return len(self._documents)

    def ids(self) -> list[str]:
        """Return the ids of all runs, oldest first."""
        return list(self._documents)

    def get(self, run_id: str) -> Document | None:
        """Return a copy of a run's document."""
        data = self._documents.get(run_id)
        return None if data is None else bson.decode(data, codec_options=CODEC_OPTIONS)

    def put(self, document: Mapping[str, Any]) -> None:
        """Store a copy of a document, whatever it holds."""
        run_id = document["_id"]
        data = bson.encode(document, codec_options=CODEC_OPTIONS)
        if len(data) > MAX_DOCUMENT:
            raise PayloadTooLarge(
                f"Run {run_id!r} would take {len(data):,} bytes and {MAX_DOCUMENT:,} are "
                "allowed; pass large data as arguments or results, which are kept outside of it",
                run_id=run_id,
            )
        self._documents[run_id] = data
        for field, index in (("due_at", self._due), ("outbox_due", self._outboxes)):
            if isinstance(due_at := document.get(field), datetime):
                index[run_id] = (str(document.get("code")), due_at)
            else:
                index.pop(run_id, None)

    def due(self, codes: Sequence[str]) -> list[tuple[datetime, str]]:
        """Return when the runs of these codes are due, earliest first."""
        return self._sorted(self._due, codes)

    def outboxes(self, codes: Sequence[str]) -> list[tuple[datetime, str]]:
        """Return when the outboxes of the runs of these codes are due, earliest first."""
        return self._sorted(self._outboxes, codes)

    def _sorted(
        self, index: Mapping[str, tuple[str, datetime]], codes: Sequence[str]
    ) -> list[tuple[datetime, str]]:
        wanted = set(codes)
        found = ((due_at, run_id) for run_id, (code, due_at) in index.items() if code in wanted)
        return sorted(found)

"""`Places`: room in a worker that is kept for runs whose claims are on their way."""

from __future__ import annotations

import asyncio


class Places:
    """Counts the places that are kept."""

    def __init__(self) -> None:
        self.kept: int = 0
        self._none_kept = asyncio.Event()
        self._none_kept.set()

    def keep(self) -> None:
        """Keep a place."""
        self.kept += 1
        self._none_kept.clear()

    def free(self) -> None:
        """Give a place back."""
        self.kept -= 1
        if not self.kept:
            self._none_kept.set()

    async def until_none_is_kept(self) -> None:
        """Wait until every place was given back."""
        await self._none_kept.wait()

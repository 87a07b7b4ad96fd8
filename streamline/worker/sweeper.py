"""`Sweeper`: lets the store delete payloads that no run refers to, now and then."""

from __future__ import annotations

import asyncio
import logging
import random

from streamline.store import RunStore

_log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two sweeps of one worker, on average."""


class Sweeper:
    """Sweeps for as long as its worker works.

    Args:
        store: What to sweep.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store

    async def run(self) -> None:
        """Sweep, for ever."""
        while True:
            # Workers that started together don't sweep together.
            await asyncio.sleep(EVERY * random.uniform(0.5, 1.5))
            try:
                if swept := await self._store.sweep_payloads():
                    _log.info("%d payloads that no run refers to were deleted", swept)
            except Exception as error:  # whatever it is: the next sweep finds what this one left
                _log.warning("payloads that no run refers to can't be deleted: %s", error)

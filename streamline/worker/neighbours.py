"""`Neighbours`: the workers of this host that hold claims. What a dead one held is due at once.

Who they are is asked of the store now and then; whether they live, of the operating system, which
costs next to nothing and so is done often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from streamline.store import RunStore
from streamline.worker.identity import WorkerId

_log = logging.getLogger(__name__)

ASK = 0.3
"""Seconds between questions to the store: the longest that a worker goes unknown, dead or alive."""
GLANCE = 0.1
"""Seconds between looks at the processes."""


class Neighbours:
    """Takes over, for a worker, what other workers of its host held when they died.

    Args:
        store: Where the runs are.
        worker: The worker's own id.
        on_taken_over: Called once runs are due that a dead worker held.
    """

    def __init__(self, store: RunStore, worker: str, on_taken_over: Callable[[], None]) -> None:
        self._store = store
        self._worker = worker
        self._on_taken_over = on_taken_over
        self._known: list[tuple[str, WorkerId]] = []

    async def watch(self) -> None:
        """Look after them, for ever; return at once where no process can be seen."""
        neighbourhood = WorkerId.neighbourhood()
        while neighbourhood is not None:
            try:
                await self._ask(neighbourhood)
                for _ in range(round(ASK / GLANCE)):
                    await self._take_over_dead()
                    await asyncio.sleep(GLANCE)
            except Exception as error:
                # Whatever it is: were this to end, dead workers' runs would wait for their leases.
                _log.warning("can't look for dead workers: %s", error)
                await asyncio.sleep(ASK)

    async def _ask(self, neighbourhood: str) -> None:
        holders = await self._store.claim_holders(neighbourhood, besides=self._worker)
        parsed = [(holder, WorkerId.parse(holder)) for holder in holders]
        self._known = [(text, id_) for text, id_ in parsed if id_ is not None and id_.is_local]

    async def _take_over_dead(self) -> None:
        for neighbour in [each for each in self._known if each[1].is_dead]:
            holder = neighbour[0]
            expired = await self._store.expire_claims(holder)
            self._known.remove(neighbour)
            if expired:
                _log.warning(
                    "worker %s of this host is dead; %d of its runs are due", holder, expired
                )
                self._on_taken_over()

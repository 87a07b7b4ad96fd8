"""`Delivery`: how messages get to runs.

A run that is parked in this process takes its message and goes on by one write, which claims it;
one that is elsewhere gets it through the store, and whoever can hears of it from there.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from streamline.codec import LargePayload
from streamline.errors import RunNotFound, StreamlineError
from streamline.model import Message, Notice, PostResult, Run, Status
from streamline.store import RunStore, Spill
from streamline.worker import Worker


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A message for a run, and the slot that it closes, if any."""

    message: Message
    slot: str | None = None


Compose = Callable[[Run], Letter]
"""Makes the letter for a run as it stands (its head); raises what is wrong with it."""


class Delivery:
    """Puts messages into inboxes and lets the runs know.

    Args:
        store: Where the runs are.
        worker: The local worker.
    """

    def __init__(self, store: RunStore, worker: Worker) -> None:
        self._store = store
        self._worker = worker
        self._spill = Spill(store)

    async def deliver(self, run_id: str, compose: Compose, *, fresh: bool = True) -> PostResult:
        """Bring a run a message that depends on how the run stands.

        Args:
            compose: Makes the message.
            fresh: Whether its id is new, so that no earlier message can have had it.

        Raises:
            RunNotFound: There is no such run.
            StreamlineError: What `compose` raises for the run as it is stored.
        """
        if await self._to_parked(run_id, compose, fresh=fresh):
            return PostResult.POSTED
        if (seen := self._worker.seen(run_id)) is not None and (
            letter := _try(compose, seen)
        ) is not None:
            result = await self.post(run_id, letter)
            if result not in (PostResult.NO_SLOT, PostResult.ENDED):  # else it isn't as it seemed
                return result
        run = await self._store.load_run(run_id, journal=False, inbox=False)
        if run is None:
            raise not_found(run_id)
        return await self.post(run_id, compose(run))

    async def deliver_blindly(self, run_id: str, letter: Letter) -> PostResult:
        """Bring a run a message, with a new id, that doesn't depend on how the run stands.

        Raises:
            RunNotFound: There is no such run.
        """
        if await self._to_parked(run_id, lambda run: letter, fresh=True):
            return PostResult.POSTED
        return await self.post(run_id, letter)

    async def post(self, run_id: str, letter: Letter) -> PostResult:
        """Bring a run a message through the store.

        Raises:
            RunNotFound: There is no such run.
        """
        message = await self._spill.message(letter.message, run_id)
        result = await self._store.post(run_id, message, slot=letter.slot)
        if result is not PostResult.POSTED:
            await self._spill.discard(letter.message.payload, run_id)
        if result is PostResult.NO_RUN:
            raise not_found(run_id)
        if result is PostResult.POSTED:
            self.tell_worker(run_id)
        return result

    def tell_worker(self, run_id: str) -> None:
        """Let the local worker know at once; other processes hear it from the store."""
        now = self._store.clock.now()
        self._worker.notice(
            Notice(run_id=run_id, status=Status.WAITING, due_at=now, inbox_seq=1 << 62)
        )

    async def _to_parked(self, run_id: str, compose: Compose, *, fresh: bool) -> bool:
        """Put the message into a run that is parked here and let it go on, if that can be."""
        driver = self._worker.take_parked(run_id)
        if driver is None:
            return False
        seen = driver.seen
        # An id that isn't new may be among archived entries: the store must look for it there.
        try:
            letter = _try(compose, seen) if fresh or not seen.journal_base else None
        except BaseException:
            self._worker.put_back(driver)
            raise
        # Nothing is to wait for a large payload that is being written.
        if letter is None or isinstance(letter.message.payload, LargePayload):
            self._worker.put_back(driver)
            return False
        return await self._worker.post_to(driver, letter.message, slot=letter.slot)


def _try(compose: Compose, seen: Run) -> Letter | None:
    # What is wrong with it may be so only from here: the store has the last word.
    try:
        return compose(seen)
    except StreamlineError:
        return None


def not_found(run_id: str) -> RunNotFound:
    """Return the error for a run that isn't there."""
    return RunNotFound(f"there is no run {run_id!r}; check its id and the database", run_id=run_id)

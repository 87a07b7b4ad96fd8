"""`Process`: a worker on an in-memory store, that can die as a real process does."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from streamline.clock import Clock
from streamline.codec import Failure
from streamline.definitions import Registry, Step, Workflow
from streamline.engine import Streamline
from streamline.handles import unset_current_engine
from streamline.model import Claim, Commit, CommitResult, Dispatch, Message, PostResult, Run
from streamline.store import RunStore
from streamline.store.memory import MemoryStore
from streamline.store.memory_data import MemoryData
from streamline.worker import Services, Worker

T = TypeVar("T")

CommitHook = Callable[[Commit], bool]
"""Called with each commit; True lets the process die at that point."""
WriteHook = Callable[[str], bool]
"""The same with the verb of each other write: of starting children, and of telling runs."""


class MortalStore(MemoryStore):
    """A connection to shared data that can be cut right before or right after a write."""

    def __init__(self, clock: Clock, data: MemoryData) -> None:
        super().__init__(clock, data)
        self.before_commit: CommitHook = survive
        self.after_commit: CommitHook = survive
        self.before_write: WriteHook = survive
        self.after_write: WriteHook = survive

    async def commit(self, commit: Commit) -> CommitResult:
        if self.before_commit(commit):
            self.sever()
        result = await super().commit(commit)
        if result is CommitResult.LANDED and self.after_commit(commit):
            self.sever()
            await self._alive()  # it never is again
        return result

    async def create_run(self, run: Run) -> tuple[Run, bool]:
        return await self._mortally("create_run", super().create_run(run))

    async def follow(self, run_id: str, follower: str) -> Run | None:
        return await self._mortally("follow", super().follow(run_id, follower))

    async def post(self, run_id: str, message: Message, *, slot: str | None = None) -> PostResult:
        return await self._mortally("post", super().post(run_id, message, slot=slot))

    async def post_to_parked(
        self, parked: Run, message: Message, claim: Claim, *, slot: str | None = None
    ) -> Run | None:
        posting = super().post_to_parked(parked, message, claim, slot=slot)
        return await self._mortally("post_to_parked", posting)

    async def cancel_unstarted(self, run_id: str, error: Failure) -> bool:
        return await self._mortally("cancel_unstarted", super().cancel_unstarted(run_id, error))

    async def settle_outbox(
        self, run_id: str, sent: Sequence[Dispatch], again_at: datetime
    ) -> None:
        settling = super().settle_outbox(run_id, sent, again_at)
        return await self._mortally("settle_outbox", settling)

    async def _mortally(self, verb: str, write: Coroutine[Any, Any, T]) -> T:
        if self.before_write(verb):
            self.sever()
        written = await write
        if self.after_write(verb):
            self.sever()
            await self._alive()
        return written


class Process(Streamline):
    """A worker process of a test environment.

    Args:
        clock: The environment's.
        data: What its processes share.
        registry: The definitions it drives.
        replace_step: What it runs in the place of a step.
        replace_workflow: What it runs in the place of a workflow.
    """

    def __init__(
        self,
        clock: Clock,
        data: MemoryData,
        registry: Registry,
        replace_step: Callable[[Step[..., Any]], Step[..., Any]],
        replace_workflow: Callable[[Workflow[..., Any]], Workflow[..., Any]] | None = None,
    ) -> None:
        self.mortal_store: MortalStore = MortalStore(clock, data)
        self._replace_step = replace_step
        self._replace_workflow = replace_workflow
        super().__init__(store=self.mortal_store, registry=registry)

    async def start(self) -> Process:
        await super().start()
        # The test's own engine is the current one; this is another process's.
        unset_current_engine(self)
        return self

    def _services(self, store: RunStore) -> Services:
        return msgspec.structs.replace(
            super()._services(store),
            replace_step=self._replace_step,
            replace_workflow=self._replace_workflow,
        )

    @property
    def worker(self) -> Worker:
        """Its worker."""
        assert self._worker is not None
        return self._worker

    def die(self) -> None:
        """Die: nothing of what is in memory is written any more."""
        self.mortal_store.sever()
        self.kill()


def survive(write: object) -> bool:
    """Let the process live through a write."""
    return False

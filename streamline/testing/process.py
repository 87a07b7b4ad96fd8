"""`Process`: a worker on an in-memory store, that can die as a real process does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from streamline.clock import Clock
from streamline.definitions import Registry, Step
from streamline.engine import Streamline
from streamline.handles import unset_current_engine
from streamline.model import Commit, CommitResult
from streamline.store import RunStore
from streamline.store.memory import MemoryStore
from streamline.store.memory_data import MemoryData
from streamline.worker import Services, Worker

CommitHook = Callable[[Commit], bool]
"""Called with each commit; True lets the process die at that point."""


class MortalStore(MemoryStore):
    """A connection to shared data that can be cut right before or right after a commit."""

    def __init__(self, clock: Clock, data: MemoryData) -> None:
        super().__init__(clock, data)
        self.before_commit: CommitHook = survive
        self.after_commit: CommitHook = survive

    async def commit(self, commit: Commit) -> CommitResult:
        if self.before_commit(commit):
            self.sever()
        result = await super().commit(commit)
        if result is CommitResult.LANDED and self.after_commit(commit):
            self.sever()
            await super().claim_holders()  # a severed verb never returns
        return result


class Process(Streamline):
    """A worker process of a test environment.

    Args:
        clock: The environment's.
        data: What its processes share.
        registry: The definitions it drives.
        replace_step: What it runs in the place of a step.
    """

    def __init__(
        self,
        clock: Clock,
        data: MemoryData,
        registry: Registry,
        replace_step: Callable[[Step[..., Any]], Step[..., Any]],
    ) -> None:
        self.mortal_store: MortalStore = MortalStore(clock, data)
        self._replace_step = replace_step
        super().__init__(store=self.mortal_store, registry=registry)

    async def start(self) -> Process:
        await super().start()
        # The test's own engine is the current one; this is another process's.
        unset_current_engine(self)
        return self

    def _services(self, store: RunStore) -> Services:
        return msgspec.structs.replace(super()._services(store), replace_step=self._replace_step)

    @property
    def worker(self) -> Worker:
        """Its worker."""
        assert self._worker is not None
        return self._worker

    def die(self) -> None:
        """Die: nothing of what is in memory is written any more."""
        self.mortal_store.sever()
        self.kill()


def survive(commit: Commit) -> bool:
    """Let the process live through a commit."""
    return False

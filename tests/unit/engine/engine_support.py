"""What the engine's tests share: worlds in memory, more worker processes, and patience."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from streamline import InvalidState, Registry, RunHandle, Status, Step, Workflow, step, workflow
from streamline.events import Event
from streamline.model import Run
from streamline.testing import Environment
from streamline.testing.process import Process

T = TypeVar("T")
SECONDS = 10
"""How long a test waits for a result before it says that the run hangs."""


class World(Environment):
    """An environment whose definitions are its own, and which may have more workers."""

    def __init__(self) -> None:
        super().__init__(registry=Registry())
        self.heard: list[Event] = []
        self.events.on("*", self.heard.append)
        self.others: list[Process] = []

    def step(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """`@step` into this world's registry."""
        return self._define(step, fn, options)

    def workflow(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """`@workflow` into this world's registry."""
        return self._define(workflow, fn, options)

    def _define(self, decorator: Any, fn: Any, options: dict[str, Any]) -> Any:
        made = decorator(registry=self.registry, **options)
        return made if fn is None else made(fn)

    async def another_worker(self, registry: Registry | None = None) -> Process:
        """Start one more worker process on the same data."""
        process = Process(self.clock, self._shared, registry or self.registry, self._substitute)
        self.others.append(process)
        return await process.start()

    async def hand_over(self, run_id: str, to: Process) -> None:
        """Let another worker take a run over from the one that holds it and doesn't know."""
        holder = (await self.run(run_id)).worker
        assert holder is not None
        await to.mortal_store.expire_claims(holder)
        claimed = await to.mortal_store.claim_run(to.worker.scheduler.new_claim(), run_id)
        assert claimed is not None
        to.worker.adopt(claimed)

    async def run(self, run_id: str) -> Run:
        """Return a run as stored, archived entries not included."""
        assert self._store is not None
        run = await self._store.load_run(run_id)
        assert run is not None
        return run

    async def stop(self, drain: Any = 0.0) -> None:
        for process in self.others:
            await process.stop(0)
        self.others.clear()
        await super().stop(drain)

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of the events heard so far."""
        return [event.name for event in self.heard if event.name.startswith(prefix)]


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait until something is so; its events come from other tasks and threads."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it looks at has no event
            await asyncio.sleep(0.001)


async def until_status(handle: RunHandle[Any], status: Status, seconds: float = 5.0) -> None:
    """Wait until a run has a status, without letting time be skipped."""
    async with asyncio.timeout(seconds):
        while await handle.status() is not status:  # noqa: ASYNC110 - a client sees it so
            await asyncio.sleep(0.001)


async def once_it_waits(call: Callable[[], Awaitable[T]], seconds: float = 5.0) -> T:
    """Call again and again until the run is in a state that allows it."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await call()
            except InvalidState:
                await asyncio.sleep(0.001)


def steps_of(run: Any) -> list[str]:
    """Return the ids of the steps recorded in a run's journal, in order."""
    return [entry.id for entry in run.journal if entry.kind.value == "step"]


def kinds_of(run: Any) -> list[tuple[str, str]]:
    """Return (kind, id) of every entry of a run's journal."""
    return [(entry.kind.value, entry.id) for entry in run.journal]


__all__ = [
    "SECONDS",
    "Step",
    "Workflow",
    "World",
    "kinds_of",
    "once_it_waits",
    "steps_of",
    "until",
    "until_status",
]

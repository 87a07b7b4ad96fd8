"""Short, crafted schedules that a fault of the engine can't pass unseen.

Each is played with the engine as it is, or with a mutation in its workers; the checker must accept
the first and report the second. They prove that the checker can fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient

from streamline import Streamline
from tests.acceptance.apps.worker import address_of
from tests.acceptance.checker import ENDED, describe
from tests.chaos import flows
from tests.chaos.checker import check
from tests.chaos.client import History
from tests.chaos.findings import gather
from tests.chaos.site import Child
from tests.chaos.trail import Trail, read_trails

LEASE = 1.0
PATIENCE = 20.0
QUIET = 6.0


class Stage:
    """A database of its own, and workers on it."""

    def __init__(self, uri: str, directory: Path, mutation: str) -> None:
        self.directory = directory
        self._mutation = mutation
        self._database = f"scene_{uuid.uuid4().hex[:12]}"
        self._uri = uri
        self._workers: list[Child] = []

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Stage]:
        """Connect; end the workers afterwards."""
        address = address_of(self._uri, self._database)
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(self._uri, tz_aware=True)
        self.database = client[self._database]
        self.history = History(Trail(self.directory / "history-scene.jsonl"), "scene")
        self.engine = Streamline(address, worker=False, registry=flows.registry)
        try:
            async with self.engine:
                yield self
        finally:
            for worker in self._workers:
                await worker.kill()
            await client.drop_database(self._database)
            await client.close()

    async def work(self) -> Child:
        """Start a worker with the mutation."""
        address = address_of(self._uri, self._database)
        options = [address, str(self.directory), "--lease", str(LEASE), "--mutate", self._mutation]
        worker = Child(f"worker-{len(self._workers)}", "tests.chaos.worker", lambda _: options)
        self._workers.append(worker)
        await worker.launch(self.directory)
        return worker

    async def start(self, flow: str, run: str, seed: int) -> None:
        """Start a run."""
        launch = flows.registry.find(flow).options(engine=self.engine, id=run)
        await self.history.tell(
            "start", run, lambda: launch.start(seed), flow=flow, seed=seed, delay=None
        )

    async def until_effect(self, **wanted: object) -> None:
        """Wait for a row that a step leaves."""
        async with asyncio.timeout(PATIENCE):
            while not any(wanted.items() <= row.items() for row in self._rows()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # another process writes it

    def _rows(self) -> list[dict[str, Any]]:
        return read_trails(self.directory, "effects-*.jsonl")

    async def verdict(self) -> list[str]:
        """Give the runs time to end, and check."""
        under_way: list[dict[str, Any]] = []
        stuck = []
        try:
            async with asyncio.timeout(QUIET):
                while True:
                    query = {"status": {"$nin": ENDED}}
                    under_way = await self.database.workflow_runs.find(query).to_list()
                    if not under_way:
                        break
                    await asyncio.sleep(0.1)
        except TimeoutError:
            stuck = [f"stuck: {describe(under_way)}"]
        await asyncio.sleep(LEASE)  # whoever is to write too late does so now
        return [*stuck, *check(await gather(self.database, self.directory))]


async def takeover(stage: Stage) -> None:
    """Freeze a worker in a step; thaw it when another has begun the same step anew."""
    old = await stage.work()
    await stage.start("plodding", "taken", 1)
    await stage.until_effect(run="taken", step="plod", pid=old.pid, kind="start")
    await asyncio.sleep(0.5)
    old.freeze()
    new = await stage.work()
    await stage.until_effect(run="taken", step="plod", pid=new.pid, kind="start")
    old.thaw()


async def late_message(stage: Stage) -> None:
    """Send a message while the commit that parks its receiver is on its way."""
    await stage.work()
    await stage.start("listening", "heard", 1)
    await stage.until_effect(run="heard", step="work", kind="end")
    await asyncio.sleep(0.2)
    handle = stage.engine.handle("heard")
    facts = {"channel": "mail", "message": "mail-0", "payload": 7}
    await stage.history.tell("send", "heard", lambda: handle.send("mail", 7, id="mail-0"), **facts)


async def lost_replies(stage: Stage) -> None:
    """Lose every other reply to a worker's commits."""
    await stage.work()
    for seed in range(3):
        await stage.start("chain", f"repeated-{seed}", seed)


async def play(
    scene: Callable[[Stage], Awaitable[None]], uri: str, directory: Path, mutation: str
) -> list[str]:
    """Play a scene; returns what the checker found wrong."""
    await asyncio.to_thread(directory.mkdir)
    async with Stage(uri, directory, mutation).opened() as stage:
        await scene(stage)
        return await stage.verdict()

"""What `make chaos` found, each made certain in memory."""

from __future__ import annotations

import asyncio

from engine_support import SECONDS, until

from streamline import ServerUnavailable, receive
from streamline.worker import driver


async def test_an_outage_while_a_run_is_read_does_not_fail_it(world, monkeypatch):
    """Nor does it hand the run back: the reads of a driver go through outages as its commits do."""
    monkeypatch.setattr(driver, "RETRY_OUTAGE", 0.01)
    go_on, outages = asyncio.Event(), []

    @world.step
    async def hold() -> None:
        await go_on.wait()

    @world.workflow
    async def flow() -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(hold())
            return await receive("word", type=str)

    store = world.process.mortal_store
    load_run = store.load_run

    async def away(run_id, *, journal=True):
        if len(outages) < 2:
            outages.append(run_id)
            raise ServerUnavailable("away for longer than its timeout")
        return await load_run(run_id, journal=journal)

    handle = await flow.start()
    await until(lambda: world.process.worker.quiet)
    monkeypatch.setattr(store, "load_run", away)
    await handle.send("word", "heard")
    await until(lambda: len(outages) == 2)
    go_on.set()
    assert await handle.result(SECONDS) == "heard"

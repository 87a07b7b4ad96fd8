"""A process of DBOS: python -m benchmarks.peers.dbos_process DATABASE-URL."""

from __future__ import annotations

import asyncio
import os
import sys

from dbos import DBOS, DBOSConfig

from benchmarks.peers.dbos_workflows import listener, sleeper, steps, survivor
from benchmarks.peers.peer import Peer, greet


class DbosPeer(Peer):
    """DBOS by its async API, as its documentation has it: start, then wait by the handle."""

    async def run_steps(self, length: int) -> None:
        handle = await DBOS.start_workflow_async(steps, length)
        await handle.get_result()

    async def sleep(self, seconds: float, number: int) -> None:
        starts = (DBOS.start_workflow_async(sleeper, seconds) for _ in range(number))
        handles = await asyncio.gather(*starts)
        await asyncio.gather(*(handle.get_result() for handle in handles))

    async def listen(self, number: int) -> str:
        handle = await DBOS.start_workflow_async(listener, number)
        return handle.workflow_id

    async def send(self, run_id: str, number: int) -> None:
        await DBOS.send_async(run_id, number, topic="bench")

    async def survive(self, length: int) -> None:
        await DBOS.start_workflow_async(survivor, os.getpid(), length)


async def _main(url: str) -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": url,
        "log_level": "ERROR",
        # One version for every process, whatever the modules around are.
        "application_version": "bench",
    }
    DBOS(config=config)
    greet()
    DBOS.launch()
    await DbosPeer().serve()
    DBOS.destroy()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))

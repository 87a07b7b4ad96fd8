"""A process of streamline: python -m benchmarks.peers.streamline_process URI."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from benchmarks.bench import CONCURRENCY
from benchmarks.peers.peer import Peer, greet
from benchmarks.workflows import listener, sleeper, steps, survivor
from streamline import Streamline


class StreamlinePeer(Peer):
    """streamline, with a worker in this process.

    Args:
        engine: Where runs are started.
    """

    def __init__(self, engine: Streamline) -> None:
        self._engine = engine

    async def run_steps(self, length: int) -> None:
        handle = await self._engine.start_run(steps, length)
        await handle.result()

    async def sleep(self, seconds: float, number: int) -> None:
        starts = (self._engine.start_run(sleeper, seconds) for _ in range(number))
        handles = await asyncio.gather(*starts)
        await asyncio.gather(*(handle.result() for handle in handles))

    async def listen(self, number: int) -> str:
        return (await self._engine.start_run(listener, number)).id

    async def send(self, run_id: str, number: int) -> None:
        await self._engine.handle(run_id).send("bench", number)

    async def survive(self, length: int) -> None:
        await self._engine.start_run(survivor, os.getpid(), length)


async def _main(address: str) -> None:
    greet()
    async with Streamline(address, concurrency=CONCURRENCY) as engine:
        await StreamlinePeer(engine).serve()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(_main(sys.argv[1]))

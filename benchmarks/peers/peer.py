"""`Peer`: an engine as the workloads see it, and the workloads themselves, the same for each.

A peer's process says when it began to launch, then `ready`; it answers lines (`latency 100`) in
JSON, and ends at the end of its input.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from abc import ABC, abstractmethod
from typing import Any

from benchmarks.peers.marks import handled, holding, went_on, woke_late
from benchmarks.processor import cpu_seconds
from benchmarks.slots import in_slots

_LENGTH = 5
_POLL = 0.005


class Peer(ABC):
    """One engine in this process. Whatever it starts is durable before it runs."""

    @abstractmethod
    async def run_steps(self, length: int) -> None:
        """Start a run of so many sequential steps, and wait for its result."""

    @abstractmethod
    async def sleep(self, seconds: float, number: int) -> None:
        """Start so many runs at once that sleep; wait for them. They fill `woke_late`."""

    @abstractmethod
    async def listen(self, number: int) -> str:
        """Start a run that receives so many messages and calls `mark_handled`; return its id."""

    @abstractmethod
    async def send(self, run_id: str, number: int) -> None:
        """Send a listener a message."""

    @abstractmethod
    async def survive(self, length: int) -> None:
        """Start a run of so many steps and one more that holds on, but in another process."""

    # -- the workloads ----------------------------------------------------------------------------

    async def latency(self, runs: int) -> list[float]:
        """Return the milliseconds of 10-step runs, one by one."""
        took = []
        for _ in range(runs):
            began = time.perf_counter()
            await self.run_steps(10)
            took.append((time.perf_counter() - began) * 1000)
        return took

    async def throughput(self, runs: int, in_flight: int) -> tuple[float, float]:
        """Return steps per second, and the milliseconds of processor time of a 5-step run."""
        cpu = cpu_seconds()
        began = time.perf_counter()
        await in_slots(lambda: self.run_steps(_LENGTH), runs, in_flight)
        seconds = time.perf_counter() - began
        return runs * _LENGTH / seconds, (cpu_seconds() - cpu) / runs * 1000

    async def sleeps(self, number: int) -> list[float]:
        """Return by how many milliseconds sleeps of 1 s, all at once, ended late."""
        woke_late.clear()
        await self.sleep(1.0, number)
        assert len(woke_late) == number
        return [max(0.0, seconds) * 1000 for seconds in woke_late.values()]

    async def messages(self, number: int) -> list[float]:
        """Return the milliseconds from `send` to the body that goes on, one by one."""
        run_id = await self.listen(number)
        delays = []
        for index in range(number):
            # The body waits by then; at random, since some engines poll.
            await asyncio.sleep(random.uniform(0.05, 0.15))
            future = handled[index] = asyncio.get_running_loop().create_future()
            sent = time.perf_counter()
            await self.send(run_id, index)
            delays.append((await future - sent) * 1000)
        return delays

    async def long(self, length: int) -> float:
        """Return the milliseconds of a step of a long run."""
        began = time.perf_counter()
        await self.run_steps(length)
        return (time.perf_counter() - began) / length * 1000

    async def hold(self, length: int) -> bool:
        """Run so many steps, and hold on in the next one."""
        await self.survive(length)
        while not holding:
            await asyncio.sleep(_POLL)
        return True

    async def resumed(self) -> float:
        """Return when the run that another process had held went on here."""
        while not went_on:
            await asyncio.sleep(_POLL)
        return went_on[0]

    async def serve(self) -> None:
        """Obey lines until there are no more."""
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, *numbers = line.split()
            answer: Any = await getattr(self, name)(*map(int, numbers))
            print(json.dumps(answer), flush=True)


def greet() -> None:
    """Say when the engine begins to launch; what came before is Python and its imports."""
    print(time.monotonic(), flush=True)

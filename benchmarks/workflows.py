"""The workflows that are measured. What they tell goes into `marks`."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import datetime, timedelta

from benchmarks.peers.marks import holding, mark_handled, went_on, woke_late
from streamline import current, now, receive, sleep, sleep_until, step, workflow


@step
async def count(number: int) -> int:
    """Do nothing; what is measured is everything around it."""
    return number + 1


@step
async def pause(seconds: float) -> None:
    """Wait, as for another service."""
    await asyncio.sleep(seconds)


@step
async def stamp() -> float:
    """Return when it runs, by the clock that all processes of a host share."""
    return time.monotonic()


@step
async def hold(pid: int) -> float:
    """Never end in the process with this pid; in any other, return when it runs."""
    if os.getpid() == pid:
        holding.add(current().run_id)
        await asyncio.Event().wait()
    went_on.append(time.monotonic())
    return went_on[-1]


@workflow
async def steps(number: int) -> int:
    """Run so many steps one by one."""
    total = 0
    for _ in range(number):
        total = await count(total)
    return total


@workflow
async def pauses(number: int, seconds: float) -> None:
    """Run so many steps that wait, one by one."""
    for _ in range(number):
        await pause(seconds)


@workflow
async def stamped() -> float:
    """Return when its first step ran."""
    return await stamp()


@workflow
async def survivor(pid: int, number: int) -> float:
    """Run so many steps; then return when another process than this one took it over."""
    total = 0
    for _ in range(number):
        total = await count(total)
    return await hold(pid)


@workflow
async def sleeper(seconds: float) -> None:
    """Sleep durably."""
    due = now() + timedelta(seconds=seconds)
    await sleep(seconds)
    woke_late[current().run_id] = time.time() - due.timestamp()


@workflow
async def sleeper_until(due: datetime) -> None:
    """Sleep durably until an instant."""
    await sleep_until(due)
    woke_late[current().run_id] = time.time() - due.timestamp()


@workflow
async def listener(messages: int) -> None:
    """Receive so many messages."""
    for _ in range(messages):
        mark_handled(await receive("bench", type=int))


@workflow
async def parker() -> None:
    """Do a step, then wait for a message."""
    await count(0)
    await receive("bench")

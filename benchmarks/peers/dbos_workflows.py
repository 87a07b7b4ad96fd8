"""The same workflows as in `benchmarks.workflows`, written for DBOS with its async API."""

from __future__ import annotations

import asyncio
import os
import time

from dbos import DBOS

from benchmarks.peers.marks import holding, mark_handled, went_on, woke_late


@DBOS.step()
async def count(number: int) -> int:
    """Do nothing; what is measured is everything around it."""
    return number + 1


@DBOS.step()
async def hold(pid: int) -> None:
    """Never end in the process with this pid; in any other, tell that it runs."""
    if os.getpid() == pid:
        holding.add("held")
        await asyncio.Event().wait()
    went_on.append(time.monotonic())


@DBOS.workflow()
async def steps(number: int) -> int:
    """Run so many steps one by one."""
    total = 0
    for _ in range(number):
        total = await count(total)
    return total


@DBOS.workflow()
async def survivor(pid: int, number: int) -> None:
    """Run so many steps, then one that only another process than this one ends."""
    total = 0
    for _ in range(number):
        total = await count(total)
    await hold(pid)


@DBOS.workflow()
async def sleeper(seconds: float) -> None:
    """Sleep durably."""
    due = time.time() + seconds
    await DBOS.sleep_async(seconds)
    woke_late[str(DBOS.workflow_id)] = time.time() - due


@DBOS.workflow()
async def listener(messages: int) -> None:
    """Receive so many messages."""
    for _ in range(messages):
        mark_handled(await DBOS.recv_async("bench", timeout_seconds=60))

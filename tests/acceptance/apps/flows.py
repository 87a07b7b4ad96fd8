"""The workflows that are killed, and the record that each execution of a step leaves behind.

A step execution inserts a row into the collection `effects` before it does anything, and returns
the row's id: so the journal says which execution was the one recorded.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import msgspec
from bson import ObjectId
from pymongo import AsyncMongoClient, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import DuplicateKeyError, PyMongoError
from tenacity import wait_fixed

from streamline import (
    Registry,
    RunFailed,
    continue_as_new,
    current,
    heartbeat,
    receive,
    step,
    wait,
    workflow,
)

EFFECTS = "effects"
registry = Registry()
foreign = Registry()
"""Definitions that an ordinary worker of these tests doesn't know."""


class Done(msgspec.Struct, frozen=True):
    """What a step returns: a value, and who came to it."""

    value: int
    effect: str
    pid: int


class Effects:
    """The collection of effects, on a client of its own; `connect` sets where it is."""

    def __init__(self) -> None:
        self._collection: AsyncCollection[dict[str, Any]] | None = None

    def connect(self, uri: str, database: str) -> None:
        """Connect, in the event loop that will use it."""
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            uri, serverSelectionTimeoutMS=1000
        )
        self._collection = client[database].get_collection(
            EFFECTS, write_concern=WriteConcern(w="majority", j=True)
        )

    async def record(self, kind: str) -> str:
        """Write down that this step does something; returns the id of the row."""
        assert self._collection is not None
        here = current()
        row = {
            "_id": str(ObjectId()),
            "kind": kind,
            "run": here.run_id,
            "generation": here.generation,
            "step": here.step_id,
            "attempt": here.attempt,
            "idempotency_key": here.idempotency_key,
            "pid": os.getpid(),
            "at": time.time(),
        }
        while True:
            try:
                await self._collection.insert_one(row)
            except DuplicateKeyError:
                pass
            except PyMongoError:  # the server is away: that is not what is tested here
                await asyncio.sleep(0.1)
                continue
            return str(row["_id"])


effects = Effects()


def _work(n: int) -> int:
    return (n * 31 + 7) % 100_003


async def _perform(n: int, seconds: float) -> Done:
    effect = await effects.record("start")
    await asyncio.sleep(seconds)
    return Done(_work(n), effect, os.getpid())


@step(registry=registry)
async def work(n: int) -> Done:
    """Take 10 to 50 ms."""
    return await _perform(n, random.uniform(0.01, 0.05))


@step(registry=registry, attempts=3, wait=wait_fixed(0.1))
async def flaky(n: int) -> Done:
    """Fail the first time."""
    done = await _perform(n, 0.01)
    if current().attempt == 1:
        raise ConnectionError("the first attempt always fails")
    return done


async def _branch(n: int) -> int:
    first = await work(n)
    return (await work(first.value)).value


class Result(msgspec.Struct, frozen=True):
    """What a `mixed` run comes to; the same however often it is killed."""

    total: int
    branches: list[int]
    mails: list[int]
    approval: int
    last: int


MAILS = 3


@workflow(registry=registry)
async def mixed(seed: int) -> Result:
    """Do some of everything: steps in a row and side by side, sleeps, messages, waits, a retry."""
    total = 0
    for index in range(3):
        total += (await work(seed + index)).value
    branches = await asyncio.gather(*(_branch(seed + 10 * index) for index in range(3)))
    await asyncio.sleep(0.55 + seed % 5 * 0.1)  # longer than a worker holds a run: it is parked
    mails = [await receive("mail", type=int) for _ in range(MAILS)]
    total += (await flaky(seed)).value
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0.05))
        side = group.create_task(_branch(seed + 100))
    total += side.result()
    approval = await wait("May it?", {"total": total}, name="approve", type=int)
    last = await work(total + approval)
    return Result(total, list(branches), mails, approval, last.value)


def expected(seed: int, mails: list[int], approval: int) -> Result:
    """Return what `mixed` must come to."""
    total = sum(_work(seed + index) for index in range(3))
    branches = [_work(_work(seed + 10 * index)) for index in range(3)]
    total += _work(seed) + _work(_work(seed + 100))
    return Result(total, branches, mails, approval, _work(total + approval))


@workflow(registry=registry)
async def renewing(
    generations: int, mails: list[int] | None = None, total: int = 0
) -> tuple[list[int], int]:
    """Go round a loop of steps and messages, beginning anew each time."""
    mails = [*(mails or []), await receive("mail", type=int), await receive("mail", type=int)]
    for done in await asyncio.gather(work(mails[-2]), work(mails[-1])):
        total += done.value
    await asyncio.sleep(0.02)
    total += (await work(total)).value
    if generations > 1:
        continue_as_new(generations - 1, mails, total)
    return mails, total


def renewed(generations: int) -> tuple[list[int], int]:
    """Return what `renewing` must come to with mails that are numbered from 0."""
    total = 0
    for mail in range(0, 2 * generations, 2):
        total += _work(mail) + _work(mail + 1)
        total += _work(total)
    return list(range(2 * generations)), total


@workflow(registry=registry)
async def errand(n: int) -> int:
    """Do two steps with a nap between them."""
    first = await work(n)
    await asyncio.sleep(0.6)  # longer than a worker holds a run: it is parked
    return (await work(first.value)).value


@workflow(registry=registry)
async def hopeless(n: int) -> None:
    """Fail, after a step."""
    raise LookupError(str((await work(n)).value))


@workflow(registry=registry)
async def endless() -> None:
    """Wait for what never comes."""
    await receive("never")


@workflow(registry=registry)
async def household(n: int) -> list[int]:
    """Have children: some side by side, one for later, one that fails, one given up."""
    later = await errand.start(n)
    several = await asyncio.gather(*(errand(n + index) for index in range(1, 4)))
    try:
        async with asyncio.timeout(0.6):
            await endless()
    except TimeoutError:
        several.append((await work(n)).value)
    try:
        await hopeless(n)
    except RunFailed as error:
        several.append(int(str(error.__cause__)))
    return [*several, await later.result()]


def kept(n: int) -> list[int]:
    """Return what `household` must come to."""
    errands = [_work(_work(n + index)) for index in range(4)]
    return [*errands[1:], _work(n), _work(n), errands[0]]


@step(registry=registry)
async def plod(n: int, seconds: float) -> Done:
    """Work for long, leaving a trace all along, and one when cancelled."""
    effect = await effects.record("start")
    try:
        for _ in range(round(seconds / 0.05)):  # not by the clock: it goes on while we are frozen
            await asyncio.sleep(0.05)
            heartbeat()
    except asyncio.CancelledError:
        await effects.record("cancelled")
        raise
    return Done(_work(n), effect, os.getpid())


@workflow(registry=registry)
async def plodding(n: int, seconds: float = 1.0) -> int:
    """Run a long step between two short ones."""
    first = await work(n)
    return (await work((await plod(first.value, seconds)).value)).value


def plodded(n: int) -> int:
    """Return what `plodding` must come to."""
    return _work(_work(_work(n)))


@step(registry=registry, semantics="at_most_once")
async def once(n: int) -> Done:
    """Take a second, and never run twice."""
    return await _perform(n, 1.0)


@workflow(registry=registry)
async def at_most_once(n: int) -> str:
    """Return whether the step's outcome is known."""
    try:
        await once(n)
    except Exception as error:
        return type(error).__name__
    return "done"


@step(registry=registry, attempts=3, wait=wait_fixed(2.0))
async def failing() -> int:
    """Fail always."""
    await effects.record("start")
    raise ConnectionError("as always")


@workflow(registry=registry)
async def backing_off() -> str:
    """Return the error of a step that was tried three times."""
    try:
        return str(await failing())
    except ConnectionError as error:
        return str(error)


@workflow(registry=registry)
async def napping(seconds: float) -> int:
    """Sleep between two steps."""
    await work(1)
    await asyncio.sleep(seconds)
    return (await work(2)).value


@step(registry=registry)
async def pull_the_plug(flag: str) -> str:
    """Kill the process that runs it, for as long as the flag's file is there."""
    await effects.record("start")
    if await asyncio.to_thread(Path(flag).exists):
        os._exit(9)
    return "survived"


@workflow(registry=registry)
async def poison(flag: str) -> str:
    """Take the process down."""
    return await pull_the_plug(flag)


@workflow(registry=foreign)
async def exotic(n: int) -> int:
    """Be known to few."""
    return n + 1

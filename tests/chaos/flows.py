"""The workflows under chaos. What each comes to is a function of its input and its messages.

Every execution of a step leaves a row when it starts and one when it ends; the row's id is part of
its result, so the journal says which execution was recorded.
"""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tenacity import wait_fixed

from streamline import (
    NonRetryable,
    Registry,
    RunCancelled,
    RunFailed,
    continue_as_new,
    current,
    heartbeat,
    now,
    patched,
    receive,
    set_context,
    step,
    wait,
    workflow,
)
from streamline.runtime import require_step
from tests.acceptance.apps.flows import Done
from tests.chaos.trail import Trail

registry = Registry()


class Place:
    """Where this process leaves its traces; `settle` says it."""

    def __init__(self) -> None:
        self.directory = Path()
        self._trail: Trail | None = None

    def settle(self, directory: Path) -> None:
        """Begin to write."""
        self.directory = directory
        self._trail = Trail(directory / f"effects-{os.getpid()}.jsonl")

    def effect(self, kind: str, effect: str | None = None) -> str:
        """Write down that a step does something; returns the id of the execution."""
        assert self._trail is not None
        here = current()
        effect = effect or uuid.uuid4().hex
        self._trail.write(
            _id=effect,
            kind=kind,
            run=here.run_id,
            step=here.step_id,
            generation=here.generation,
            attempt=here.attempt,
            idempotency_key=here.idempotency_key,
            fence=require_step("effect").run.fence,
        )
        return effect


place = Place()


def work_of(n: int) -> int:
    """Return what the steps make of a number."""
    return (n * 31 + 7) % 100_003


async def _perform(n: int, seconds: float) -> Done:
    effect = place.effect("start")
    await asyncio.sleep(seconds)
    place.effect("end", effect)
    return Done(work_of(n), effect, os.getpid())


@step(registry=registry)
async def work(n: int) -> Done:
    """Take 5 to 40 ms."""
    return await _perform(n, random.uniform(0.005, 0.04))


@step(registry=registry, attempts=4, wait=wait_fixed(0.15))
async def flaky(n: int) -> Done:
    """Fail up to three times."""
    done = await _perform(n, 0.01)
    if current().attempt <= n % 4:
        raise ConnectionError(f"attempt {current().attempt} of {n} fails")
    return done


@step(registry=registry)
async def slow(n: int) -> Done:
    """Take a second, with heartbeats."""
    effect = place.effect("start")
    for index in range(10):
        await asyncio.sleep(0.1)
        heartbeat(index)
    place.effect("end", effect)
    return Done(work_of(n), effect, os.getpid())


@step(registry=registry)
async def before_nap(n: int) -> Done:
    """Be what comes right before a sleep."""
    return await _perform(n, 0.01)


@step(registry=registry)
async def after_nap(n: int) -> Done:
    """Be what comes right after a sleep."""
    return await _perform(n, 0.01)


@step(registry=registry)
async def reserve(n: int) -> Done:
    """Take what `restore` gives back."""
    return await _perform(n, 0.02)


@step(registry=registry)
async def restore(n: int) -> Done:
    """Give back what `reserve` took."""
    return await _perform(n, 0.02)


@step(registry=registry, semantics="at_most_once")
async def once(n: int) -> Done:
    """Never run twice."""
    return await _perform(n, 0.2)


@step(registry=registry)
async def fragile(n: int, run: str) -> Done:
    """Fail until somebody mends it."""
    done = await _perform(n, 0.01)
    if not await asyncio.to_thread(flag_of(place.directory, run).exists):
        raise NonRetryable(f"{run} is not mended")
    return done


def flag_of(directory: Path, run: str) -> Path:
    """Return the file whose existence mends `fragile`."""
    return directory / f"mended-{run}"


class Sum(msgspec.Struct, frozen=True):
    """What most runs come to."""

    values: list[int]
    early: bool = False
    """Whether a sleep was shorter than asked, by the body's own clock."""


def nap_of(seed: int) -> float:
    """Return how long a chain sleeps: kept by its worker, or parked."""
    return (0.3, 0.7, 1.1, 1.9)[seed % 4]


async def _twice(n: int) -> int:
    return (await work((await work(n)).value)).value


@workflow(registry=registry)
async def chain(seed: int) -> Sum:
    """Do steps in a row and side by side, sleep, retry; take no messages."""
    first = await work(seed)
    branches = await asyncio.gather(*(_twice(seed + n) for n in range(3)))
    set_context(half=first.value)
    last = await before_nap(first.value)
    began = now()
    await asyncio.sleep(nap_of(seed))
    early = (now() - began).total_seconds() < nap_of(seed)
    last = await after_nap(last.value)
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0.05))
        sides = [group.create_task(_twice(seed + n)) for n in (10, 11)]
    tried = (await flaky(seed)).value
    added = 1 if patched("newer") else 0
    assert current().context["half"] == first.value
    values = [*branches, last.value, *(side.result() for side in sides), tried + added]
    return Sum(values, early)


def chained(seed: int) -> Sum:
    """Return what `chain` must come to."""

    def twice(n: int) -> int:
        return work_of(work_of(n))

    first = work_of(seed)
    branches = [twice(seed + n) for n in range(3)]
    sides = [twice(seed + n) for n in (10, 11)]
    return Sum([*branches, twice(first), *sides, work_of(seed) + 1])


MAILS = {"mail": 3, "aside": 2}
"""Channel -> how many messages `mailing` takes of it."""


TAKING = {"mailing": MAILS, "renewing": MAILS, "bulky": {"parcel": 1}}
"""Workflow -> the channels it takes messages of, and how many of each."""


def mail_of(seed: int, channel: str, index: int) -> int | list[int]:
    """Return the payload of a mail; that of a parcel is large."""
    if channel == "parcel":
        return page_of(seed + 2 + index)
    return seed + index + (1000 if channel == "aside" else 0)


def _answer_to(seed: int, channel: str, index: int) -> int:
    mail = mail_of(seed, channel, index)
    assert isinstance(mail, int)
    return work_of(mail)


async def _collect(channel: str) -> list[int]:
    taken = []
    for _ in range(MAILS[channel]):
        mail = await receive(channel, type=int)
        taken.append((await work(mail)).value)
    return taken


@workflow(registry=registry)
async def mailing(seed: int) -> Sum:
    """Take messages from two channels at once, then wait for an approval."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_collect(channel)) for channel in MAILS]
    mails = [value for task in tasks for value in task.result()]
    approval = await wait("May it?", {"mails": mails}, name="approve", type=int)
    return Sum([*mails, approval, (await work(seed + approval)).value])


def mailed(seed: int, approval: int) -> Sum:
    """Return what `mailing` must come to."""
    mails = [
        _answer_to(seed, channel, index)
        for channel, count in MAILS.items()
        for index in range(count)
    ]
    return Sum([*mails, approval, work_of(seed + approval)])


@workflow(registry=registry)
async def renewing(seed: int, values: list[int] | None = None) -> Sum:
    """Take one message in each generation, from the channels in turn."""
    values = values or []
    sides = asyncio.gather(work(seed), _twice(seed))
    mail = await receive(CHANNELS[current().generation - 1], type=int)
    await sides
    values = [*values, (await work(mail)).value]
    if len(values) < len(CHANNELS):
        left_behind = asyncio.create_task(slow(seed))
        await asyncio.sleep(0.02)  # on a slow machine it may have ended by then; all the same
        del left_behind
        continue_as_new(seed, values=values)
    return Sum(values)


CHANNELS = ("mail", "aside", "mail", "aside", "mail")
"""What each generation of `renewing` takes a message of."""


def renewed(seed: int) -> Sum:
    """Return what `renewing` must come to."""
    values = []
    for generation, channel in enumerate(CHANNELS):
        index = CHANNELS[:generation].count(channel)
        values.append(_answer_to(seed, channel, index))
    return Sum(values)


NOTHING = -1


async def _or_nothing(awaitable: Any) -> int:
    try:
        found = await awaitable
    except TimeoutError:
        return NOTHING
    return found.value if isinstance(found, Done) else int(found)


@workflow(registry=registry)
async def racing(seed: int) -> Sum:
    """Let messages and steps race with timeouts."""
    limit = 0.4 + seed % 5 * 0.4
    got = await _or_nothing(receive("race", type=int, timeout=limit))
    asked = await _or_nothing(wait("Quick!", name="quick", type=int, timeout=limit))
    ran = await _or_nothing(asyncio.wait_for(slow(seed), 0.7 + seed % 3 * 0.3))
    nap = asyncio.create_task(asyncio.sleep(0.02))
    step_ = asyncio.create_task(_twice(seed))
    await asyncio.wait({nap, step_}, return_when=asyncio.FIRST_COMPLETED)
    return Sum([got, asked, ran, await step_])


@workflow(registry=registry)
async def guarded(seed: int) -> Sum:
    """Give back what it took, whatever happens to it."""
    taken = await reserve(seed)
    try:
        await asyncio.sleep(0.2 + seed % 4 * 0.5)
        value = await work(taken.value)
        await slow(seed)
    finally:
        given = await restore(taken.value)
    return Sum([value.value, given.value])


def guarded_of(seed: int) -> Sum:
    """Return what `guarded` must come to."""
    return Sum([work_of(work_of(seed))] * 2)


@workflow(registry=registry)
async def brittle(seed: int) -> Sum:
    """Fail until it is mended and tried again."""
    first = await work(seed)
    return Sum([(await fragile(first.value, current().run_id)).value])


@workflow(registry=registry)
async def sparing(seed: int) -> Sum:
    """Have a step that may not run twice; its outcome may stay unknown."""
    try:
        value = (await once(seed)).value
    except Exception:
        value = NOTHING
    return Sum([value, (await work(seed)).value])


LONG = 230
"""More entries than a document holds: the older ones are archived."""


@workflow(registry=registry)
async def long(seed: int) -> Sum:
    """Do many steps, ten at a time."""
    total = 0
    for start in range(0, LONG, 10):
        found = await asyncio.gather(*(work(seed + start + n) for n in range(10)))
        total += sum(each.value for each in found)
    return Sum([total])


def long_of(seed: int) -> Sum:
    """Return what `long` must come to."""
    return Sum([sum(work_of(seed + n) for n in range(LONG))])


class Page(msgspec.Struct, frozen=True):
    """What a step did that returns more than a document keeps."""

    values: list[int]
    effect: str
    pid: int


def page_of(n: int) -> list[int]:
    """Return some kilobytes that follow from a number: more than `INLINE_LIMIT`."""
    return [work_of(n + index) for index in range(400)]


@step(registry=registry)
async def write(n: int) -> Page:
    """Return a large value."""
    done = await _perform(n, 0.02)
    return Page(page_of(n), done.effect, done.pid)


@step(registry=registry)
async def read(values: list[int]) -> Done:
    """Take a large value, and return a small one."""
    return await _perform(sum(values), 0.01)


@workflow(registry=registry)
async def bulky(seed: int) -> Sum:
    """Let a large step, message, argument, result and output follow each other."""
    page = await write(seed)
    parcel = await receive("parcel", type=list[int])
    total = (await read([*page.values, *parcel])).value
    copy = await copyist(seed + 1, page.values)
    return Sum([total, *copy.values])


def bulky_of(seed: int) -> Sum:
    """Return what `bulky` must come to."""
    total = work_of(sum([*page_of(seed), *page_of(seed + 2)]))
    return Sum([total, *copied(seed + 1, page_of(seed)).values])


@workflow(registry=registry)
async def copyist(seed: int, values: list[int]) -> Sum:
    """Be a child that is given much and returns much."""
    first = await work(seed)
    await asyncio.sleep(0.2 + seed % 3 * 0.4)
    return Sum([(await work(first.value)).value, *values])


def copied(seed: int, values: list[int]) -> Sum:
    """Return what `copyist` must come to."""
    return Sum([work_of(work_of(seed)), *values])


@workflow(registry=registry)
async def errand(seed: int) -> Sum:
    """Be a child that does two steps with a nap between them; every other one returns much."""
    first = await work(seed)
    await asyncio.sleep(0.1 + seed % 3 * 0.5)
    last = await work(first.value)
    return Sum([last.value, *(page_of(seed) if seed % 2 else [])])


def errand_of(seed: int) -> Sum:
    """Return what `errand` must come to."""
    return Sum([work_of(work_of(seed)), *(page_of(seed) if seed % 2 else [])])


@workflow(registry=registry)
async def hopeless(seed: int) -> Sum:
    """Be a child that fails after a step."""
    raise LookupError(str((await work(seed)).value))


@workflow(registry=registry)
async def endless(seed: int) -> Sum:
    """Be a child that never ends by itself, and cleans up when it is cancelled."""
    taken = await reserve(seed)
    try:
        return Sum([await receive("never", type=int)])
    finally:
        await restore(taken.value)


@workflow(registry=registry)
async def family(seed: int) -> Sum:
    """Have children: side by side, for later, in a lost race, failing, and given up in the end."""
    companion = await endless.start(seed)
    later = await errand.start(seed)
    several = await asyncio.gather(*(errand(seed + n) for n in (1, 2, 3)))
    raced = await _win_against(asyncio.create_task(_forever(seed + 1)), seed)
    number = int(now().timestamp()) // 4
    shared = await _share(number)
    failed = NOTHING
    try:
        await hopeless(seed)
    except RunFailed as error:
        failed = int(str(error.__cause__))
    last = await later.result()
    await companion.cancel("it goes home")
    return Sum([*(sum(each.values) for each in [*several, last]), raced, failed, number, shared])


async def _share(number: int) -> int:
    """Call a child that may be another's, who may have given it up."""
    try:
        return sum((await errand.options(id=f"{SHARED}{number}")(number)).values)
    except RunCancelled:
        return NOTHING


SHARED = "shared-errand-"
"""How the ids begin of children that parents share which call them within the same seconds."""


async def _forever(seed: int) -> Sum:
    return await endless(seed)


async def _win_against(other: asyncio.Task[Sum], seed: int) -> int:
    """Do steps until they win, which they must: the other one never ends."""
    mine = asyncio.create_task(_twice(seed))
    await asyncio.wait({mine, other}, return_when=asyncio.FIRST_COMPLETED)
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    return await mine


def family_of(seed: int, number: int, shared: int) -> Sum:
    """Return what `family` must come to, with the shared child's number and what that came to."""
    sums = [sum(errand_of(seed + n).values) for n in (1, 2, 3, 0)]
    return Sum([*sums, work_of(work_of(seed)), work_of(seed), number, shared])


@workflow(registry=registry)
async def heir(seed: int) -> Sum:
    """Be a child that has children of its own."""
    found = await asyncio.gather(errand(seed), errand(seed + 1))
    return Sum([sum(each.values) for each in found])


def heir_of(seed: int) -> Sum:
    """Return what `heir` must come to."""
    return Sum([sum(errand_of(seed + n).values) for n in (0, 1)])


HEIRS = 3


@workflow(registry=registry)
async def dynasty(seed: int, values: list[int] | None = None) -> Sum:
    """Have one child in each generation, which is restarted under the same id."""
    values = values or []
    generation = current().generation
    successor = heir.options(id=f"{current().run_id}-heir", on_existing="restart")
    values = [*values, *(await successor(seed + generation)).values]
    if generation < HEIRS:
        continue_as_new(seed, values=values)
    return Sum(values)


def dynasty_of(seed: int) -> Sum:
    """Return what `dynasty` must come to."""
    values = [heir_of(seed + generation).values for generation in range(1, HEIRS + 1)]
    return Sum([value for each in values for value in each])


@step(registry=registry)
async def plod(n: int, seconds: float) -> Done:
    """Take so long of this process's own time: a frozen one goes on where it was."""
    effect = place.effect("start")
    for _ in range(round(seconds / 0.05)):
        await asyncio.sleep(0.05)
    place.effect("end", effect)
    return Done(work_of(n), effect, os.getpid())


@workflow(registry=registry)
async def plodding(seed: int) -> Sum:
    """Have one long step between two short ones; the mutations are shown on it."""
    first = await work(seed)
    second = await plod(first.value, 1.0)
    return Sum([(await work(second.value)).value])


def plodded(seed: int) -> Sum:
    """Return what `plodding` must come to."""
    return Sum([work_of(work_of(work_of(seed)))])


@workflow(registry=registry)
async def listening(seed: int) -> Sum:
    """Take one message after a step; the mutations are shown on it."""
    await work(seed)
    return Sum([await receive("mail", type=int)])


EXPECTED: dict[str, Callable[[int], Sum]] = {
    "chain": chained,
    "guarded": guarded_of,
    "brittle": lambda seed: Sum([work_of(work_of(seed))]),
    "long": long_of,
    "renewing": renewed,
    "plodding": plodded,
    "errand": errand_of,
    "bulky": bulky_of,
    "heir": heir_of,
    "dynasty": dynasty_of,
    "copyist": lambda seed: copied(seed, page_of(seed - 1)),
}
"""Workflow -> what it must come to, where the input alone says so; the checker knows the others."""

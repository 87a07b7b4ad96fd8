"""What clients do with runs, as a table: a new operation is a function and a row.

An operation gets the life it is part of, and a generator of its own; it speaks to the engine
through `life.tell`, which puts the call and what came of it into the history.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from streamline.handles import RunHandle
from tests.chaos import flows

Outcome = str


class Life(Protocol):
    """One run as its client sees it."""

    run: str
    flow: str
    seed: int

    @property
    def handle(self) -> RunHandle[flows.Sum]:
        """The run's handle."""
        ...

    async def tell(
        self, op: str, call: Callable[[], Awaitable[object]], **facts: object
    ) -> Outcome:
        """Call, and write down what came of it: `ok`, `refused`, or `unknown`."""
        ...

    async def insist(
        self, op: str, call: Callable[[], Awaitable[object]], **facts: object
    ) -> Outcome:
        """`tell` until the outcome is known."""
        ...

    async def start(self, op: str = "start", **options: object) -> Outcome:
        """Start the run (again)."""
        ...

    async def until_waiting(self, name: str) -> bool:
        """Wait until the run waits for a resume; False if it has ended, or takes too long."""
        ...

    def mend(self) -> None:
        """Let `fragile` succeed from now on."""
        ...


class Operation(msgspec.Struct, frozen=True):
    """One row of the table.

    Args:
        act: What is done.
        chance: For how many of the lives.
        flows: In which workflows; all if empty.
        within: It is begun within so many seconds of the start.
        after: Whether it waits for the end of the run instead.
    """

    act: Callable[[Life, random.Random], Awaitable[object]]
    chance: float = 1.0
    flows: tuple[str, ...] = ()
    within: float = 2.0
    after: bool = False


async def send_mails(life: Life, rng: random.Random) -> None:
    """Send what a workflow takes, in order within each channel, some of it twice."""

    channels = flows.TAKING[life.flow]

    async def fill(channel: str) -> None:
        for index in range(channels[channel]):
            for _ in range(rng.choice((1, 1, 1, 2))):
                payload = flows.mail_of(life.seed, channel, index)
                await send(life, channel, payload, f"{channel}-{index}")
            await asyncio.sleep(rng.uniform(0, 0.5))

    await asyncio.gather(*(fill(channel) for channel in channels))


async def send(life: Life, channel: str, payload: int | list[int], id_: str) -> Outcome:
    """Send one message, until it is known whether it was stored."""
    return await life.insist(
        "send",
        lambda: life.handle.send(channel, payload, id=id_),
        channel=channel,
        message=id_,
        payload=payload,
    )


async def send_once(life: Life, rng: random.Random) -> None:
    """Send without an id, and don't try again: it may be lost, but not doubled."""
    payload = rng.randrange(1_000_000, 2_000_000)
    await life.tell(
        "send", lambda: life.handle.send("race", payload), channel="race", payload=payload
    )


async def approve(life: Life, rng: random.Random) -> None:
    """Resume from two sides at once: just one may be told that it did."""
    if await life.until_waiting("approve"):
        payloads = rng.sample(range(1000), 2)
        await asyncio.gather(*(_resume(life, "approve", payload) for payload in payloads))


async def hurry(life: Life, rng: random.Random) -> None:
    """Resume what may time out at that moment."""
    for _ in range(3):
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        await _resume(life, "quick", rng.randrange(1000))


async def _resume(life: Life, name: str, payload: int) -> Outcome:
    return await life.tell(
        "resume", lambda: life.handle.resume(payload, name=name), name=name, payload=payload
    )


async def cancel(life: Life, rng: random.Random) -> None:
    """Cancel."""
    await life.insist("cancel", lambda: life.handle.cancel("chaos"))


async def terminate(life: Life, rng: random.Random) -> None:
    """Terminate."""
    await life.insist("terminate", lambda: life.handle.terminate("chaos"))


async def pause(life: Life, rng: random.Random) -> None:
    """Pause, perhaps twice, and unpause after a while; perhaps cancel between."""
    for _ in range(rng.choice((1, 1, 2))):
        await life.insist("pause", lambda: life.handle.pause("chaos"))
    await asyncio.sleep(rng.uniform(0, 1.5))
    if rng.random() < 0.2:
        await cancel(life, rng)
    await life.insist("unpause", lambda: life.handle.unpause())


async def start_again(life: Life, rng: random.Random) -> None:
    """Start the same id again, from two sides: the same run."""
    await asyncio.gather(life.start(), life.start())


async def restart(life: Life, rng: random.Random) -> None:
    """Terminate it, and start another run of the same id in its place."""
    await terminate(life, rng)
    await life.start("restart", on_existing="restart")


async def start_over(life: Life, rng: random.Random) -> None:
    """Start another run in the place of the ended one."""
    await life.start("restart", on_existing="restart")


async def look(life: Life, rng: random.Random) -> None:
    """Ask for the status and the document."""
    await life.tell("status", life.handle.status)
    await life.tell("get", life.handle.get)


STEPS = {
    "chain": ("work", "work#3", "before_nap", "after_nap", "flaky"),
    "family": ("work", "work#2", "errand#2", "endless#2", "hopeless"),
    "bulky": ("read", "copyist"),
}
"""Workflow -> what it is rewound to: nothing before a message, which would be forgotten."""


async def rewind(life: Life, rng: random.Random) -> None:
    """Go back to a step of the ended run."""
    step_id = rng.choice(STEPS[life.flow])
    await life.insist("rewind", lambda: life.handle.rewind(step_id), step=step_id)


async def mend(life: Life, rng: random.Random) -> None:
    """Mend what failed, and try again from two sides: one of them may be refused."""
    life.mend()
    await asyncio.gather(
        life.insist("retry", life.handle.retry), life.tell("retry", life.handle.retry)
    )


OPERATIONS: dict[str, Operation] = {
    "send_mails": Operation(send_mails, flows=tuple(flows.TAKING)),
    "approve": Operation(approve, flows=("mailing",)),
    "send_once": Operation(send_once, chance=0.7, flows=("racing",), within=1.5),
    "hurry": Operation(hurry, chance=0.7, flows=("racing",), within=1.0),
    "start_again": Operation(start_again, chance=0.15),
    "look": Operation(look, chance=0.2),
    "pause": Operation(pause, chance=0.12),
    "cancel": Operation(cancel, chance=0.06),
    "cancel_guarded": Operation(cancel, chance=0.6, flows=("guarded",), within=3.0),
    "cancel_family": Operation(cancel, chance=0.15, flows=("family",), within=4.0),
    "terminate": Operation(terminate, chance=0.04),
    "terminate_family": Operation(terminate, chance=0.1, flows=("family",), within=4.0),
    "restart": Operation(restart, chance=0.06, flows=("chain", "guarded", "family")),
    "mend": Operation(mend, flows=("brittle",), after=True),
    "rewind": Operation(rewind, chance=0.3, flows=tuple(STEPS), after=True),
    "start_over": Operation(start_over, chance=0.15, flows=("chain", "family"), after=True),
}

FLOWS: dict[str, float] = {
    "chain": 5,
    "mailing": 5,
    "racing": 3,
    "guarded": 3,
    "renewing": 3,
    "brittle": 2,
    "family": 6,
    "bulky": 4,
    "dynasty": 2,
    "sparing": 1,
    "long": 0.3,
}
"""Workflow -> how often it is started, relative to the others."""

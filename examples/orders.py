"""The workflow of `order_demo.py`, and its worker process.

Each step notes its side effect as a row of the collection `effects` and only then takes its time,
so that a process killed in between leaves an effect without a record. A payment is made exactly
once all the same: its document has the idempotency key as `_id`.
"""

import asyncio
import logging
import os
import random
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from tenacity import wait_fixed

from streamline import Event, Streamline, current, sleep, step, wait, workflow

Database: TypeAlias = AsyncDatabase[dict[str, Any]]
_shop: list[Database] = []

LARGE = 500


@dataclass
class Order:
    id: str
    item: str
    total: int
    card: str = "good"


@dataclass
class Approval:
    ok: bool
    by: str


class CardNetworkDown(Exception):
    """What a payment provider says on a bad day; the step is tried again."""


async def act(seconds: float) -> None:
    """Do the step's effect, then wait as long as the other side takes to answer."""
    here = current()
    await _shop[0]["effects"].insert_one(
        {
            "key": here.idempotency_key,
            "run": here.run_id,
            "step": here.step_id,
            "attempt": here.attempt,
            "pid": os.getpid(),
            "at": datetime.now(UTC),
        }
    )
    await asyncio.sleep(seconds * random.uniform(0.7, 1.3))


@step
async def validate(order: Order) -> Order:
    if order.total <= 0:
        raise ValueError(f"order {order.id} has no total")
    await act(0.1)
    return order


@step
async def reserve(order: Order) -> str:
    await act(0.4)
    return f"shelf-{order.item}"


@step(attempts=5, wait=wait_fixed(0.4))
async def charge(order: Order) -> str:
    if order.card == "flaky" and current().attempt < 3:
        raise CardNetworkDown("the card network does not answer")
    key = current().idempotency_key
    # The second call with one key changes nothing: exactly one payment, however often it is tried.
    await _shop[0]["payments"].update_one(
        {"_id": key}, {"$setOnInsert": {"order": order.id, "amount": order.total}}, upsert=True
    )
    await act(0.5)
    return f"payment-{order.id}"


@step
async def pack(order: Order, shelf: str) -> str:
    await act(0.6)
    return f"parcel-{order.id}"


@step
async def print_label(order: Order) -> str:
    await act(0.3)
    return f"label-{order.id}"


@step
async def send_email(order: Order, payment: str) -> None:
    await act(0.2)


@step
async def hand_over(parcel: str, label: str) -> str:
    await act(0.3)
    return f"{parcel} left with {label}"


@workflow
async def process_order(order: Order) -> str:
    order = await validate(order)
    shelf = await reserve(order)
    if order.total >= LARGE:
        approval = await wait(f"Approve {order.id}?", data={"total": order.total}, type=Approval)
        if not approval.ok:
            return f"{order.id} was declined by {approval.by}"
    payment = await charge(order)
    parcel, label, _ = await asyncio.gather(
        pack(order, shelf), print_label(order), send_email(order, payment)
    )
    await sleep("1s")  # until the carrier comes by
    return await hand_over(parcel, label)


# -- the worker process ---------------------------------------------------------------------------

_SAID = {
    "workflow:started": "started",
    "workflow:resumed": "goes on",
    "workflow:recovered": "taken over from a dead worker",
    "workflow:waiting": "parked",
    "workflow:completed": "done",
}


def say(event: Event) -> None:
    """Tell what happens, in this process's own words."""
    what = _SAID.get(event.name)
    if event.name == "step:completed":
        what = f"{event.step} recorded"
    elif event.name == "step:retry-scheduled":
        what = f"{event.step} failed, attempt {event.attempt}; trying again"
    if what is not None:
        print(f"{event.run_id} {what}", flush=True)


async def work(address: str) -> None:
    """Drive runs until killed."""
    logging.getLogger("streamline").setLevel(logging.ERROR)  # that a worker died is no news here
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(address)
    _shop[:] = [client["shop"]]
    engine = Streamline(client["shop"])
    engine.events.on("*", say)
    async with engine:
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))

"""The workflows of the recorded histories, and how each was recorded.

Their code must not change in what it asks for: that is what the histories are compared with. To
cover something new, add a workflow and a `@recorded` function, and record it (see `record.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from streamline import (
    NonRetryable,
    Registry,
    RunCancelled,
    RunFailed,
    RunHandle,
    Status,
    continue_as_new,
    current,
    now,
    patched,
    random,
    receive,
    set_context,
    sleep,
    sleep_until,
    step,
    uuid4,
    wait,
    workflow,
)
from streamline.model import Message, MessageKind
from streamline.testing import Environment

registry = Registry()
Script = Callable[[Environment], Awaitable[RunHandle[Any]]]
RECORDED: dict[str, tuple[str, Script]] = {}
"""History name -> (workflow name, the script that makes it)."""


def recorded(flow: Any, *, name: str | None = None) -> Callable[[Script], Script]:
    def keep(script: Script) -> Script:
        RECORDED[name or flow.name] = (flow.name, script)
        return script

    return keep


async def waiting(handle: RunHandle[Any]) -> None:
    while await handle.status() is not Status.WAITING:  # noqa: ASYNC110 - as a client sees it
        await asyncio.sleep(0.001)


@dataclass
class Order:
    id: str
    total: float
    due: datetime


@dataclass
class Receipt:
    order: Order
    number: int


@step(name="charge", registry=registry)
async def charge(order: Order, *, retries: int = 0) -> Receipt:
    if current().attempt <= retries:
        raise ConnectionError(f"attempt {current().attempt}")
    return Receipt(order, 7)


@step(name="double", registry=registry)
async def double(x: int) -> int:
    for _ in range(x % 5):
        await asyncio.sleep(0)
    return x * 2


@step(name="refuse", registry=registry)
async def refuse(reason: str) -> None:
    raise NonRetryable(reason)


@step(name="note", registry=registry)
async def note(**values: Any) -> None:
    set_context(**values)


# -- order: steps, retries, values of several types, sleeps, a wait -------------------------------


@workflow(name="order", registry=registry)
async def order(given: Order) -> list[Any]:
    receipt = await charge(given, retries=2)
    await sleep("1h")
    await sleep_until(now() + timedelta(days=3))
    answer = await wait("Ship it?", receipt, name="boss", type=bool, timeout="2w")
    await note(approved=answer, at=now().isoformat())
    return [receipt.order.id, receipt.number, answer, dict(current().context)]


@recorded(order)
async def _(env: Environment) -> RunHandle[Any]:
    given = Order("o-1", 42.5, datetime(2030, 5, 6, 7, 8, 9, 123_456, tzinfo=UTC))
    handle = await order.options(id="history-order", context={"by": "me"}).start(given)
    await env.advance("4d")
    await handle.resume(True)
    return handle


@recorded(order, name="order-waiting")
async def _(env: Environment) -> RunHandle[Any]:
    given = Order("o-2", 1.0, datetime(2030, 1, 1, tzinfo=UTC))
    handle = await order.options(id="history-order-waiting").start(given)
    await env.advance("4d")
    await waiting(handle)
    return handle


# -- fan: gather, TaskGroup, as_completed, queue, semaphore, lock, event --------------------------


@workflow(name="fan", registry=registry)
async def fan(n: int) -> list[Any]:
    gathered = await asyncio.gather(*(double(x) for x in range(n)))
    limit, order_of_ends = asyncio.Semaphore(2), []

    async def bounded(x: int) -> int:
        async with limit:
            value = await double(x)
            order_of_ends.append(x)
            return value

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(bounded(x)) for x in range(n)]
    completed = [await next_ for next_ in asyncio.as_completed([double(x) for x in range(n)])]
    queue: asyncio.Queue[int | None] = asyncio.Queue(2)

    async def produce() -> None:
        for x in range(n):
            await queue.put(await double(x))
            await sleep(x)
        await queue.put(None)

    producer = asyncio.create_task(produce())
    consumed = []
    while (item := await queue.get()) is not None:
        consumed.append(item)
    await producer
    return [gathered, [task.result() for task in tasks], order_of_ends, completed, consumed]


@recorded(fan)
async def _(env: Environment) -> RunHandle[Any]:
    return await fan.options(id="history-fan").start(6)


# -- race: wait, timeout, cancellation of losers, shield ------------------------------------------


@workflow(name="race", registry=registry)
async def race() -> list[Any]:
    async def slow(x: int) -> int:
        try:
            await sleep(x)
            return await double(x)
        finally:
            await double(100 + x)

    tasks = [asyncio.create_task(slow(x)) for x in (30, 10, 20)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task in pending:
            task.cancel()
    losers = await asyncio.gather(*(t for t in tasks if t in pending), return_exceptions=True)
    late = "in time"
    try:
        async with asyncio.timeout(5):
            await receive("nothing")
    except TimeoutError:
        late = "timeout"
    kept = asyncio.create_task(double(3))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.shield(kept)
    return [
        [tasks.index(t) for t in tasks if t in done],
        [type(e).__name__ for e in losers],
        late,
        await kept,
    ]


@recorded(race)
async def _(env: Environment) -> RunHandle[Any]:
    return await race.options(id="history-race").start()


# -- mail: messages in order, a duplicate, a wrong one, several channels --------------------------


@workflow(name="mail", registry=registry)
async def mail() -> list[Any]:
    heard: list[Any] = []
    for _ in range(2):
        heard.append(await receive("numbers", type=int))
    heard.append(await asyncio.gather(receive("a"), receive("b"), receive("a")))
    try:
        await receive("numbers", type=int)
    except Exception as error:
        heard.append(type(error).__name__)
    return heard


@recorded(mail)
async def _(env: Environment) -> RunHandle[Any]:
    handle = await mail.options(id="history-mail").start()
    for n in (1, 1, 2):
        await handle.send("numbers", n, id=f"n-{n}")
    await env.settle()
    for channel, payload in (("a", [1, {"x": None}]), ("b", b"\x00\xff"), ("a", 2**53)):
        await handle.send(channel, payload)
    await env.settle()
    await handle.send("words", "unheard")
    # Past the sender's check: as it comes from one that can't know the type.
    wrong = Message(
        id="wrong", kind=MessageKind.SEND, at=env.clock.now(), name="numbers", payload="x"
    )
    await env.store.post(handle.id, wrong)
    return handle


# -- failing and cancelled: errors caught and let out, cleanup ------------------------------------


@workflow(name="failing", registry=registry)
async def failing() -> None:
    caught = []
    try:
        await refuse("first")
    except NonRetryable as error:
        caught.append(str(error))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(refuse("in a group"))
            group.create_task(sleep(60))
    except* NonRetryable as errors:
        caught.append(len(errors.exceptions))
    finally:
        await note(caught=caught)
    await refuse("last")


@recorded(failing)
async def _(env: Environment) -> RunHandle[Any]:
    return await failing.options(id="history-failing").start()


@workflow(name="cleaning", registry=registry)
async def cleaning() -> None:
    try:
        await receive("never")
    except asyncio.CancelledError:
        await sleep("1h")
        await double(1)
        raise
    finally:
        await double(2)


@recorded(cleaning)
async def _(env: Environment) -> RunHandle[Any]:
    handle = await cleaning.options(id="history-cleaning").start()
    await waiting(handle)
    await handle.cancel("enough")
    return handle


# -- chance: what a body may draw, patches, its own state -----------------------------------------


@workflow(name="chance", registry=registry)
async def chance() -> list[Any]:
    drawn = [random(), str(uuid4()), now().isoformat()]
    new = patched("swap")
    set_context(count=current().context.get("count", 0) + 1)
    await note(count=current().context["count"] + 10)
    await sleep(1)
    set_context(count=current().context["count"] + 1)
    return [*drawn, new, random(), now().isoformat(), current().context["count"]]


@recorded(chance)
async def _(env: Environment) -> RunHandle[Any]:
    return await chance.options(id="history-chance", context={"count": 5}).start()


# -- renewed: the third generation of a run that continues as new ----------------------------------


@workflow(name="renewed", timeout="30d", registry=registry)
async def renewed(generations: int, seen: list[Any]) -> list[Any]:
    facts = [current().generation, patched("change"), str(uuid4()), random(), now().isoformat()]
    receipt = await charge(Order("o-1", generations, now()))
    set_context(**{f"generation{current().generation}": receipt.order.total})
    mail = await receive("mail", type=str)
    await asyncio.sleep(3600)
    seen = [*seen, facts, mail, receipt.order.due.isoformat()]
    if generations > 1:
        continue_as_new(generations - 1, seen=seen)
    return [*seen, str(sorted(current().context.items()))]


@recorded(renewed)
async def _(env: Environment) -> RunHandle[Any]:
    handle = await renewed.options(id="history-renewed", context={"given": 1}).start(3, [])
    for number in range(3):
        await handle.send("mail", f"letter {number}", id=f"m{number}")
    return handle


# -- family: children called, started, failing, given up ------------------------------------------


@workflow(name="child", registry=registry)
async def child(n: int) -> Receipt:
    await sleep(n)
    return Receipt(Order(f"c-{n}", n, now()), await double(n))


@workflow(name="bad-child", registry=registry)
async def bad_child() -> None:
    raise ValueError("bad")


@workflow(name="family", registry=registry)
async def family() -> list[Any]:
    later = await child.options(id="history-child").start(50)
    several = await asyncio.gather(child(3), child(1), child(2))
    told: list[Any] = [receipt.number for receipt in several]
    try:
        await bad_child()
    except RunFailed as error:
        told += [repr(error.__cause__), error.run_id]
    try:
        async with asyncio.timeout(10):
            await child(1000)
    except TimeoutError:
        told.append(await double(21))
    hurried = await child.start(2000)
    await hurried.cancel("no time")
    try:
        await hurried.result()
    except RunCancelled as cancelled:
        told.append(str(cancelled))
    return [*told, later.id, (await later.result()).number]


@recorded(family)
async def _(env: Environment) -> RunHandle[Any]:
    return await family.options(id="history-family").start()


@recorded(family, name="family-waiting")
async def _(env: Environment) -> RunHandle[Any]:
    handle = await family.options(id="history-family-waiting").start()
    await env.advance("5s")
    await waiting(handle)
    return handle

"""What type checkers infer of users' code. Checked by `make types`, never run.

A wrong call stands with `# type: ignore[...]`: were it accepted, mypy (`warn_unused_ignores`) and
pyright would report the comment.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

import asyncio
from dataclasses import dataclass
from typing import Any, assert_type

from streamline import (
    RunHandle,
    Status,
    Step,
    Streamline,
    Workflow,
    WorkflowRun,
    continue_as_new,
    receive,
    step,
    wait,
    workflow,
)


@dataclass
class Order:
    id: str
    total: int = 1


@dataclass
class Receipt:
    amount: int


@step
async def charge(order: Order) -> Receipt:
    return Receipt(order.total)


@step
def charge_in_a_thread(order: Order, *, currency: str = "EUR") -> Receipt:
    return Receipt(order.total)


@step
async def print_label(order: Order) -> str:
    return order.id


@step(attempts=5, timeout="30s")
async def charge_with_options(order: Order) -> Receipt:
    return Receipt(order.total)


@step(name="plain", semantics="at_most_once")
def charge_in_a_thread_with_options(order: Order) -> Receipt:
    return Receipt(order.total)


@workflow
async def checkout(order: Order, note: str = "") -> str:
    assert_type(await charge(order), Receipt)
    assert_type(await charge_in_a_thread(order, currency="USD"), Receipt)
    assert_type(await charge_with_options(order), Receipt)
    assert_type(await charge_in_a_thread_with_options(order), Receipt)
    both = await asyncio.gather(charge(order), print_label(order))
    assert_type(both, tuple[Receipt, str])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(print_label(order))
    assert_type(task.result(), str)
    return order.id


@workflow(version="2.0.0", timeout="1h")
async def waiting() -> int:
    assert_type(await wait("Please approve", type=Receipt), Receipt)
    assert_type(await receive("orders", type=Order, timeout="1h"), Order)
    return 1


@workflow
async def looping(order: Order) -> str:
    if order.total:
        return order.id
    continue_as_new(order)  # never returns, so nothing is missing here


async def callers() -> None:
    run = await checkout.start(Order("o-1"), note="soon")
    assert_type(run, RunHandle[str])
    assert_type(await run.result(), str)
    assert_type(await run.result(timeout="5s"), str)
    assert_type(await run.status(), Status)
    assert_type(await run.get(), WorkflowRun)
    assert_type(await run.wait(), WorkflowRun)
    assert_type(await waiting.start(), RunHandle[int])
    assert_type(await checkout(Order("o-1")), str)
    assert_type(await checkout.options(id="o-1").start(Order("o-1")), RunHandle[str])
    assert_type(checkout.handle("o-1"), RunHandle[str])
    assert_type(await checkout.options(id="o-1")(Order("o-1")), str)
    async with Streamline() as engine:
        assert_type(engine, Streamline)
        assert_type(await engine.start_run(checkout, Order("o-1")), RunHandle[str])
        assert_type(engine.handle("o-1"), RunHandle[Any])


@workflow
async def parent(order: Order) -> str:
    assert_type(await checkout(order), str)
    both = await asyncio.gather(checkout(order), waiting())
    assert_type(both, tuple[str, int])
    handle = await checkout.start(order)
    assert_type(handle, RunHandle[str])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(waiting())
    assert_type(task.result(), int)
    return await handle.result()


async def wrong_calls(order: Order, engine: Streamline) -> None:
    await charge("o-1")  # type: ignore[arg-type]
    await charge()  # type: ignore[call-arg]
    await charge_in_a_thread(order, money="EUR")  # type: ignore[call-arg]
    await charge_with_options(order, 1)  # type: ignore[call-arg]
    await checkout.start("o-1")  # type: ignore[arg-type]
    await checkout.start(order, notes="")  # type: ignore[call-arg]
    await checkout.options(id="o-1").start()  # type: ignore[call-arg]
    await checkout.options(ident="o-1").start(order)  # type: ignore[call-arg]
    await checkout.options(on_existing="replace").start(order)  # type: ignore[arg-type]
    await engine.start_run(checkout, 1)  # type: ignore[arg-type]
    amount: int = await charge(order)  # type: ignore[assignment]
    text: bytes = await checkout(order)  # type: ignore[assignment]
    assert (amount, text) != (0, b"")


@workflow  # type: ignore[arg-type]
def not_async(order: Order) -> str:
    return order.id


step(attempts="3")  # type: ignore[call-overload]


# What a decorator makes can be named in annotations.
a_step: Step[[Order], Receipt] = charge
a_workflow: Workflow[[], int] = waiting

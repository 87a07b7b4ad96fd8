"""A checkout that survives crashes: a step, a durable sleep, a wait for an approval.

Run it: python examples/quickstart.py
It starts a MongoDB of its own in .streamline/ (pip install 'streamline-durable[embedded]').
"""

import asyncio
from dataclasses import dataclass

from streamline import RunHandle, Streamline, step, wait, workflow


@dataclass
class Order:
    id: str
    total: int


@dataclass
class Receipt:
    order_id: str
    amount: int


@dataclass
class Approval:
    ok: bool
    by: str


@step(attempts=5, timeout="30s")
async def charge(order: Order) -> Receipt:
    """Does I/O. Once its result is recorded, it never runs again for this run."""
    print(f"  charging {order.total} for {order.id}")
    return Receipt(order_id=order.id, amount=order.total)


@step
def ship(order: Order) -> str:
    """A plain function runs in a thread."""
    print(f"  shipping {order.id}")
    return f"{order.id} is on its way"


@step
async def refund(receipt: Receipt) -> str:
    return f"{receipt.amount} paid back for {receipt.order_id}"


@workflow
async def checkout(order: Order) -> str:
    """Plain async code. Every await here is durable."""
    receipt = await charge(order)
    await asyncio.sleep(1)  # as well 24 * 3600: no process has to stay up
    approval = await wait("Please approve", data=receipt, type=Approval)
    return await ship(order) if approval.ok else await refund(receipt)


async def approve(run: RunHandle[str]) -> None:
    """What a web page or another process would do: look what is asked, and answer."""
    document = await run.get()
    while not document.awaiting:
        await asyncio.sleep(0.05)
        document = await run.get()
    question = document.awaiting[0]
    print(f"  asked: {question.reason} {question.data}")
    await run.resume(Approval(ok=True, by="Ada"))


async def main() -> None:
    async with Streamline():  # or Streamline("mongodb://localhost/shop")
        run = await checkout.start(Order(id="o-1", total=42))
        print(f"started run {run.id}")
        await approve(run)
        print(f"result: {await run.result()}")


if __name__ == "__main__":
    asyncio.run(main())

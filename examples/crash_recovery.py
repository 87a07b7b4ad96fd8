"""What a crash costs: a process is killed in the middle of a run, and another one goes on.

Run it: python examples/crash_recovery.py
It starts itself as a worker process, kills that with SIGKILL while the second of three steps runs,
and starts it again with the same run id.
"""

import asyncio
import os
import sys
from uuid import uuid4

from streamline import Streamline, current, step, workflow


def tell(what: str) -> None:
    print(f"  pid {os.getpid()}: {what}", flush=True)


@step
async def fetch(month: str) -> list[int]:
    tell("fetch runs")
    return [17, 25]


@step
async def add_up(amounts: list[int]) -> int:
    tell(f"add_up runs, idempotency key ...{current().idempotency_key[-7:]}")
    await asyncio.sleep(1)  # time enough to be killed in
    return sum(amounts)


@step
async def publish(total: int) -> str:
    tell("publish runs")
    return f"the total is {total}"


@workflow
async def report(month: str) -> str:
    amounts = await fetch(month)
    total = await add_up(amounts)
    return await publish(total)


async def work(run_id: str) -> None:
    """One life of the worker process. The id makes a second start join the same run."""
    async with Streamline():
        run = await report.options(id=run_id).start("2026-01")
        tell(f"result: {await run.result()}")
        document = await run.get()
        steps = ", ".join(f"{entry.id} (claim {entry.fence})" for entry in document.journal)
        tell(f"recorded: {steps}")


async def live(run_id: str, *, kill_at: str | None = None) -> list[str]:
    """Start the worker process, show what it says, and kill it at a certain line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, run_id, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    lines = []
    async for raw in process.stdout:
        line = raw.decode().rstrip()
        print(line)
        lines.append(line)
        if kill_at is not None and kill_at in line:
            process.kill()
            print(f"  pid {process.pid}: killed with SIGKILL")
    await process.wait()
    return lines


async def main() -> None:
    run_id = f"report-{uuid4().hex[:8]}"
    print(f"run {run_id}, first process:")
    lines = await live(run_id, kill_at="add_up runs")
    print("second process:")
    lines += await live(run_id)
    counts = {name: sum(f"{name} runs" in line for line in lines) for name in STEPS}
    print(f"calls: {counts}")
    if counts != {"fetch": 1, "add_up": 2, "publish": 1}:
        sys.exit("a recorded step ran again, or the interrupted one did not")
    print("fetch was recorded and did not run again; add_up was not, and ran again.")


STEPS = ("fetch", "add_up", "publish")

if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]) if len(sys.argv) > 1 else main())

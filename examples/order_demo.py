"""`make demo`: orders are processed while their worker is killed, twice, with SIGKILL.

Starts a MongoDB of its own in a temporary directory, starts runs of `orders.process_order`, kills
the worker process in the middle of them, starts another, answers the approvals while no worker is
alive, and checks at the end what happened how often. Exits with 1 if a promise was broken.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from orders import LARGE, Approval, Database, Order, process_order
from pymongo import AsyncMongoClient

from streamline import RunHandle, Status, Streamline, WorkflowRun
from streamline.store.embedded import EmbeddedMongod

ORDERS = [
    Order("o-1", "lamp", 40),
    Order("o-2", "chair", 120, card="flaky"),
    Order("o-3", "desk", 800),
    Order("o-4", "mug", 9),
    Order("o-5", "sofa", 2100, card="flaky"),
    Order("o-6", "rug", 75),
]
KILL_AFTER = [9, 20]
"""How many steps are recorded when a worker is killed."""
PATIENCE = 90.0
"""Seconds for everything; some fifteen are usual."""

_began_at = time.monotonic()
_COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(text: str, colour: int) -> str:
    return f"\033[{colour}m{text}\033[0m" if _COLOURED else text


def headline(text: str, colour: int = 1) -> None:
    print(paint(text, colour), flush=True)


def elapsed() -> str:
    return f"{time.monotonic() - _began_at:5.1f} s"


# -- the workers ----------------------------------------------------------------------------------


class WorkerProcess:
    """One worker process, whose words are shown as they come."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.process = process
        self._showing = asyncio.create_task(self._show())

    @classmethod
    async def start(cls, number: int, address: str) -> Self:
        script = Path(__file__).with_name("orders.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            address,
            stdout=asyncio.subprocess.PIPE,
        )
        headline(f"{elapsed()}  worker {number} starts (pid {process.pid})")
        return cls(number, process)

    async def _show(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            said = f"{elapsed()}  worker {self.number} | {line.decode().rstrip()}"
            print(paint(said, 31 + self.number), flush=True)

    async def kill(self) -> None:
        """Kill it as a power cut would: no handler runs, nothing is handed back."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._showing


# -- what happened --------------------------------------------------------------------------------


@dataclass
class Findings:
    """What the collections say in the end."""

    rows: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    reruns: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


async def recorded_steps(shop: Database) -> dict[str, datetime]:
    """Return idempotency key -> instant of the record, of every step of every run."""
    runs = await shop["workflow_runs"].find({}, {"journal": 1}).to_list()
    return {
        f"{run['_id']}/{entry['id']}": entry["at"].replace(tzinfo=UTC)
        for run in runs
        for entry in run.get("journal", ())
        if entry["kind"] == "step"
    }


async def effects_by_key(shop: Database) -> dict[str, list[dict[str, Any]]]:
    effects: dict[str, list[dict[str, Any]]] = {}
    async for effect in shop["effects"].find().sort("at", 1):
        effects.setdefault(effect["key"], []).append(effect)
    return effects


async def look(shop: Database, runs: list[WorkflowRun], kills: dict[int, datetime]) -> Findings:
    """Check the promises on what is stored."""
    found = Findings()
    records = await recorded_steps(shop)
    effects = await effects_by_key(shop)
    for key in effects.keys() - records.keys():
        found.broken.append(f"{key} had an effect, and was never recorded")
    for key, at in records.items():
        check_step(found, key, at, effects.get(key, []), kills)
    for order in ORDERS:
        paid = await shop["payments"].count_documents({"order": order.id})
        if paid != 1:
            found.broken.append(f"order {order.id} was paid {paid} times")
    for run in runs:
        if run.status is not Status.DONE:
            found.broken.append(f"run {run.id} is {run.status.value}, not done")
        steps = [key for key in records if key.startswith(f"{run.id}/")]
        again = sum(len(effects.get(key, [])) - 1 for key in steps)
        failed = sum(entry.kind == "attempt" for entry in run.journal)
        found.rows.append((run.id, run.status.value, len(steps), failed, again))
    return found


def check_step(
    found: Findings,
    key: str,
    recorded_at: datetime,
    calls: list[dict[str, Any]],
    kills: dict[int, datetime],
) -> None:
    """One effect for one record; one more only for each process killed before the record."""
    if not calls:
        found.broken.append(f"{key} is recorded and had no effect")
        return
    *earlier, last = [(call["pid"], call["at"].replace(tzinfo=UTC)) for call in calls]
    if last[1] > recorded_at:
        found.broken.append(f"{key} ran again after it was recorded")
    for pid, at in earlier:
        killed_at = kills.get(pid)
        if killed_at is None or not at <= killed_at <= recorded_at:
            found.broken.append(f"{key} had a second effect that no crash explains")
            continue
        lag = (killed_at - at).total_seconds()
        found.reruns.append(
            f"{key}: its effect had happened {lag:.2f} s before pid {pid} was killed, its record "
            f"did not exist yet; it ran again with the same key"
        )


def show(found: Findings) -> None:
    headline(f"{elapsed()}  all runs have ended")
    headline("\nrun    status  steps recorded  failed attempts  run again after a crash")
    for run, status, steps, failed, again in found.rows:
        print(f"{run:<6} {status:<7} {steps:>14}  {failed:>15}  {again:>23}")
    headline("\nrun again, and why:")
    for rerun in found.reruns:
        print(f"  {rerun}")
    steps = sum(row[2] for row in found.rows)
    if found.broken:
        headline("\nBROKEN:", 31)
        for what in found.broken:
            print(f"  {what}")
        return
    headline(f"\nall {len(found.rows)} runs are done; {steps} steps are recorded, each once", 32)
    headline("no recorded step ran again, and every order was paid exactly once", 32)


# -- the demo -------------------------------------------------------------------------------------


async def until_mid_step(shop: Database, recorded: int) -> None:
    """Wait until so many steps are recorded and some effect has no record yet."""
    while True:
        records = await recorded_steps(shop)
        effects = await effects_by_key(shop)
        if len(records) >= recorded and effects.keys() - records.keys():
            return
        await asyncio.sleep(0.02)


async def answer(handles: list[RunHandle[str]], answered: set[str]) -> None:
    """Approve every large order that asks for it, once; needs no worker to be alive."""
    for handle in handles:
        waits = (await handle.get()).awaiting
        if waits and handle.id not in answered:
            answered.add(handle.id)
            await handle.resume(Approval(ok=True, by="Ada"))
            question = f"{waits[0].reason} {waits[0].data}"
            headline(f"{elapsed()}  approved, and stored: {question}", 36)


async def demo(address: str, shop: Database) -> Findings:
    kills: dict[int, datetime] = {}
    large = [order.id for order in ORDERS if order.total >= LARGE]
    worker = await WorkerProcess.start(1, address)
    async with Streamline(shop, worker=False):
        try:
            handles = [await process_order.options(id=o.id).start(o) for o in ORDERS]
            asking = [handle for handle in handles if handle.id in large]
            answered: set[str] = set()
            for recorded in KILL_AFTER:
                await until_mid_step(shop, recorded)
                await worker.kill()
                kills[worker.process.pid] = datetime.now(UTC)
                headline(f"{elapsed()}  worker {worker.number} killed with SIGKILL", 31)
                await answer(asking, answered)
                worker = await WorkerProcess.start(worker.number + 1, address)
            while len(answered) < len(large):
                await answer(asking, answered)
                await asyncio.sleep(0.05)
            runs = await ended(handles)
        finally:
            await worker.kill()
    return await look(shop, runs, kills)


async def ended(handles: list[RunHandle[str]]) -> list[WorkflowRun]:
    """Wait for all runs; if one doesn't end, say where it stands."""
    try:
        return [await handle.wait() for handle in handles]
    except asyncio.CancelledError:
        for run in [await handle.get() for handle in handles]:
            if not run.status.ended:
                print(f"{run.id} is {run.status.value}, due at {run.due_at}, {run.attempts}")
        raise


@asynccontextmanager
async def database() -> AsyncIterator[tuple[str, Database]]:
    """A MongoDB that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="streamline-demo-") as directory:
        async with EmbeddedMongod(directory) as address:
            client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(address)
            try:
                yield address, client["shop"]
            finally:
                await client.close()


async def main() -> int:
    headline("starting a MongoDB in a temporary directory ...")
    try:
        async with database() as (address, shop), asyncio.timeout(PATIENCE):
            found = await demo(address, shop)
    except TimeoutError:
        headline(f"not all runs were done after {PATIENCE:g} s", 31)
        return 1
    show(found)
    return 1 if found.broken else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

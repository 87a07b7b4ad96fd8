"""Which plans the server chooses for what the engine asks of it, by its own profiler."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from benchmarks.bench import Bench, Place
from benchmarks.figures import at_most
from benchmarks.messages import parked
from benchmarks.workflows import listener, sleeper, steps
from streamline import RunCancelled, Streamline

_LEASE = 1.5
_RUNS = ("workflow_runs", "workflow_journal")


class Plan(msgspec.Struct, kw_only=True):
    """How commands of one kind were carried out."""

    command: str
    collection: str
    plan: str
    times: int = 0
    examined: int = 0
    """Documents looked at, at most, per document returned or changed."""


async def measure(bench: Bench, place: Place) -> None:
    """Let the engine do everything once in a collection, and list the plans."""
    async with _profiled(place), Streamline(place.address, lease=_LEASE) as engine:
        await _exercise(engine)
    plans = await _plans(place)
    for plan in plans:
        print(
            f"    {plan.times:>5} x {plan.command:<14} {plan.collection:<17} {plan.plan:<40} "
            f"<= {plan.examined} documents examined for one"
        )
    bench.figures.plans = msgspec.to_builtins(plans)
    scans = sum(plan.times for plan in plans if "COLLSCAN" in plan.plan)
    bench.figures.add("filled: collection scans", scans, "commands", target=at_most(scans, 0, "0"))


@contextlib.asynccontextmanager
async def _profiled(place: Place) -> AsyncIterator[None]:
    database = place.database
    await database.command("profile", 0)
    await database.drop_collection("system.profile")
    await database.create_collection("system.profile", capped=True, size=32 * 2**20)
    await database.command("profile", 2)
    try:
        yield
    finally:
        await database.command("profile", 0)


async def _exercise(engine: Streamline) -> None:
    """Start, sleep, wake, send, rewind, cancel, end; and let leases be renewed meanwhile."""
    long = await engine.start_run(steps, 450)  # with parts in the archive
    await long.result()
    await long.rewind("count#449")
    await long.result()
    short = [await engine.start_run(sleeper, 1.0) for _ in range(20)]
    mailbox = await engine.start_run(listener, 2)
    await parked(engine, mailbox)
    for number in (-1, -2):
        await mailbox.send("bench", number)
    await mailbox.result()
    await (await steps.options(engine=engine, delay=0.3).start(2)).result()
    await _cancel(engine)
    for handle in short:
        await handle.result()
    claims = engine.store
    assert not await claims.claim_holders("nowhere/", besides="nowhere/0/0/1/0/1")
    await claims.expire_claims("nowhere/0/0/1/0/1")
    await asyncio.sleep(_LEASE)


async def _cancel(engine: Streamline) -> None:
    handles = [await engine.start_run(listener, 1) for _ in range(2)]
    for handle in handles:
        await parked(engine, handle)
    await handles[0].cancel()
    await handles[1].terminate()
    for handle in handles:
        with contextlib.suppress(RunCancelled):
            await handle.result()


async def _plans(place: Place) -> list[Plan]:
    plans: dict[tuple[str, str, str], Plan] = {}
    async for found in place.database["system.profile"].find():
        collection = found["ns"].partition(".")[2]
        if collection not in _RUNS or "planSummary" not in found or _tails_oplog(found):
            continue
        # A query for several workflows scans its index once for each: said once.
        summary = " + ".join(dict.fromkeys(_scans(found["planSummary"])))
        key = (_command(found), collection, summary)
        plan = plans.setdefault(key, Plan(command=key[0], collection=key[1], plan=key[2]))
        plan.times += 1
        answered = max(1, found.get("nreturned", 0), found.get("nMatched", 0))
        plan.examined = max(plan.examined, -(-found.get("docsExamined", 0) // answered))
    return sorted(plans.values(), key=lambda plan: (plan.collection, plan.command, plan.plan))


def _scans(summary: str) -> list[str]:
    return re.split(r", (?=[A-Z]+ \{)", summary)


def _command(found: dict[str, Any]) -> str:
    operation = found["op"]
    return str(next(iter(found["command"])) if operation == "command" else operation)


def _tails_oplog(found: dict[str, Any]) -> bool:
    """Whether it is a change stream, which reads the oplog from where it was, not a collection."""
    command = found.get("originatingCommand") or found.get("command") or {}
    pipeline = command.get("pipeline") or [{}]
    return "$changeStream" in pipeline[0]

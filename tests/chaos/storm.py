"""One chaos run: servers and processes, a storm of faults and operations, peace, the verdict."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from bson import json_util
from pymongo.errors import PyMongoError

from streamline import Status, Streamline
from tests.acceptance.checker import ENDED, describe
from tests.chaos import flows
from tests.chaos.checker import check, summarize
from tests.chaos.client import History
from tests.chaos.faults import Fault, draw_schedule
from tests.chaos.findings import Findings, gather
from tests.chaos.site import Site
from tests.chaos.trail import Trail, read_trails
from tests.chaos.worker import INLINE_LIMIT

QUIET = 60.0
"""Seconds within which every run must have ended once the faults have stopped."""
PROBE = 20.0
"""Seconds within which a pause must be acted on then."""


class Verdict(msgspec.Struct, frozen=True):
    """What came of a chaos run."""

    seed: int
    topology: str
    seconds: float
    faults: list[Fault]
    aborts: int
    """How often a server ended by itself, of a full disk."""
    summary: str
    wrong: list[str]
    directory: Path

    @property
    def command(self) -> str:
        """Repeats the schedule of faults and operations."""
        minutes = f"{self.seconds / 60:g}"
        options = f"--seed {self.seed} --minutes {minutes} --topology {self.topology}"
        return f"python -m tests.chaos {options}"

    @property
    def text(self) -> str:
        """For people; with the command that repeats it."""
        kinds = Counter(fault.kind for fault in self.faults)
        lines = [
            f"seed {self.seed}, topology {self.topology}, {self.seconds:g} s",
            f"faults: {len(self.faults)}: "
            + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            + (f"; the server aborted {self.aborts} times" if self.aborts else ""),
            self.summary,
        ]
        if self.wrong:
            lines += [
                f"{len(self.wrong)} VIOLATIONS",
                *(f"- {_shortened(wrong)}" for wrong in self.wrong[:20]),
                f"again: {self.command}",
                f"traces: {self.directory}",
            ]
        else:
            lines.append("every promise held")
        return "\n".join(lines)


def _shortened(text: str) -> str:
    """Cut the middle out: of a stack its end tells most."""
    return text if len(text) < 2000 else f"{text[:600]}\n[...]\n{text[-1400:]}"


async def storm(seed: int, seconds: float, topology: str, directory: Path) -> Verdict:
    """Run one; returns the verdict, never raises for what the engine did wrong."""
    schedule = draw_schedule(seed, seconds, topology)
    plan = directory / "schedule.json"
    await asyncio.to_thread(plan.write_bytes, msgspec.json.encode(schedule))
    site = Site(topology, directory, seed)
    async with site.opened():
        await site.go_through(schedule)
        await site.make_peace()
        stuck = await _let_all_end(site)
        await asyncio.sleep(1)  # whoever is to write too late does so now
        findings = await gather(site.database, directory)
        wrong = [*stuck, *check(findings)]
        if wrong:
            await asyncio.to_thread(_keep, directory, findings, wrong)
    aborts = sum(event["event"] == "aborted" for event in read_trails(directory, "faults.jsonl"))
    summary = summarize(findings)
    return Verdict(seed, topology, seconds, schedule, aborts, summary, wrong, directory)


async def _let_all_end(site: Site) -> list[str]:
    """Do for the runs what clients that died can't do any more, until all have ended."""
    trail = Trail(site.directory / "history-closer.jsonl")
    engine = Streamline(
        site.address,
        worker=False,
        server_timeout="5s",
        registry=flows.registry,
        inline_limit=INLINE_LIMIT,
    )
    closer = _Closer(engine, History(trail, "closer"), random.Random(site.seed))
    runs = site.database.workflow_runs
    unfinished = {"$or": [{"status": {"$nin": ENDED}}, {"outbox": {"$exists": True}}]}
    under_way: list[dict[str, Any]] = []
    async with engine:
        unheard = await closer.probe_pauses()
        try:
            async with asyncio.timeout(QUIET):
                while True:
                    try:
                        under_way = await runs.find(unfinished).to_list()
                    except PyMongoError:
                        continue
                    if not under_way:
                        return unheard
                    await asyncio.gather(*(closer.help(run) for run in under_way))
                    await asyncio.sleep(0.5)
        except TimeoutError:
            stuck = f"stuck, {QUIET:g} s after the last fault: {describe(under_way)}"
            return [*unheard, stuck]


class _Closer:
    """Unpauses, sends and resumes in the place of clients that are gone."""

    def __init__(self, engine: Streamline, history: History, rng: random.Random) -> None:
        self._engine = engine
        self._history = history
        self._rng = rng
        self._sent: set[str] = set()

    async def probe_pauses(self) -> list[str]:
        """Pause runs while all is quiet: what was acknowledged is done. `help` unpauses them."""
        return [
            wrong
            for wrong in await asyncio.gather(*(self._probe_pause(number) for number in range(3)))
            if wrong
        ]

    async def _probe_pause(self, number: int) -> str:
        run, seed = f"probe-{number}", 3 + 4 * number
        launch = flows.guarded.options(engine=self._engine, id=run)
        facts = {"flow": "guarded", "seed": seed, "delay": None}
        await self._history.tell("start", run, lambda: launch.start(seed), **facts)
        handle = self._engine.handle(run)
        outcome, _ = await self._history.tell("pause", run, handle.pause)
        if outcome != "ok":
            return f"pause: {run} could not be paused in peace"
        try:
            async with asyncio.timeout(PROBE):
                while await handle.status() is not Status.PAUSED:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)  # asked as any client would
        except TimeoutError:
            return f"pause: {run} was not paused within {PROBE:g} s, it is {await handle.status()}"
        return ""

    async def help(self, run: dict[str, Any]) -> None:
        """Give a run what it may be waiting for."""
        handle = self._engine.handle(run["_id"])
        if run["status"] == "paused":
            await self._history.tell("unpause", handle.id, handle.unpause)
        if run["workflow"] not in flows.TAKING or run["status"] in ENDED:
            return
        if handle.id not in self._sent:
            await self._send_all(handle, run["workflow"], run["input"]["args"][0])
            self._sent.add(handle.id)
        if any(slot["name"] == "approve" for slot in run.get("awaiting", ())):
            payload = self._rng.randrange(1000, 2000)
            await self._history.tell(
                "resume",
                handle.id,
                lambda: handle.resume(payload, name="approve"),
                name="approve",
                payload=payload,
            )

    async def _send_all(self, handle: Any, flow: str, seed: int) -> None:
        for channel, count in flows.TAKING[flow].items():
            for index in range(count):
                id_, payload = f"{channel}-{index}", flows.mail_of(seed, channel, index)
                await self._history.tell(
                    "send",
                    handle.id,
                    lambda channel=channel, payload=payload, id_=id_: handle.send(
                        channel, payload, id=id_
                    ),
                    channel=channel,
                    message=id_,
                    payload=payload,
                )


def _keep(directory: Path, findings: Findings, wrong: list[str]) -> None:
    """Keep what explains a failure: the documents beside the trails and logs."""
    (directory / "violations.txt").write_text("\n\n".join(wrong))
    with (directory / "runs.jsonl").open("w") as file:
        for run_id, run in findings.evidence.runs.items():
            whole = {**run, "journal": findings.journal(run_id)}
            file.write(json.dumps(whole, default=json_util.default) + "\n")

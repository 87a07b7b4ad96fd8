"""Measures engines side by side: each workload in turns, so that noise hits all of them."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Figures, median, percentile
from benchmarks.helper import Helper
from benchmarks.sizes import Sizes

OURS = "streamline"
SQLITE = "DBOS on SQLite"
POSTGRES = "DBOS on PostgreSQL"
_TURNS = 3
_WARM_RUNS = 20
_WARM_MESSAGES = 3
_LONG = 5_000
_MESSAGES = 20
"""In one turn: DBOS polls SQLite once a second."""


async def measure(bench: Bench, postgres: str | None) -> None:
    """Measure streamline, DBOS on SQLite (its default), and on PostgreSQL if there is one."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="streamline-bench-"))
        place = await stack.enter_async_context(bench.place())
        commands = {
            OURS: ("streamline_process", place.address),
            SQLITE: ("dbos_process", f"sqlite:///{Path(directory) / 'bench.sqlite'}"),
        }
        if postgres is not None:
            url = await stack.enter_async_context(_database(postgres))
            commands[POSTGRES] = ("dbos_process", url)
        comparison = Comparison(commands, bench.sizes, bench.figures)
        await comparison.workloads()
        await comparison.kills()


class Comparison:
    """Several engines, measured in turns.

    Args:
        commands: For each engine the module of its process, and its database.
        sizes: How much is measured.
        figures: Where the figures go.
    """

    def __init__(
        self, commands: dict[str, tuple[str, str]], sizes: Sizes, figures: Figures
    ) -> None:
        self._commands = commands
        self._sizes = sizes
        self._figures = figures

    async def workloads(self) -> None:
        """Measure all that a living process can."""
        sizes = self._sizes
        async with AsyncExitStack() as stack:
            peers = {
                system: await stack.enter_async_context(self._process(system))
                for system in self._commands
            }
            await _in_turns(peers, 1, "latency", _WARM_RUNS)
            found = await _in_turns(peers, _TURNS, "latency", sizes.latency_runs // _TURNS)
            self._add("10-step run, median", found, _flat_median, "ms")
            await _in_turns(peers, 1, "throughput", 50, 50)
            found = await _in_turns(peers, _TURNS, "throughput", sizes.runs, 50)
            self._add("recorded steps, 50 in flight", found, _first_median, "steps/s")
            self._add("client CPU of a 5-step run", found, _second_median, "ms")
            found = await _in_turns(peers, _TURNS, "sleeps", sizes.at_once)
            name = f"{sizes.at_once} sleeps of 1 s at once, late, p95"
            self._add(name, found, _p95_median, "ms")
            await _in_turns(peers, 1, "messages", _WARM_MESSAGES)
            number = min(_MESSAGES, sizes.messages // _TURNS)
            found = await _in_turns(peers, _TURNS, "messages", number)
            self._add("send to receive, median", found, _flat_median, "ms")
            found = await _in_turns(peers, 1, "long", min(_LONG, sizes.long))
            self._add("a step of a long run", found, median, "ms")

    async def kills(self) -> None:
        """Kill processes that hold a run, and start another each time; then after a long run."""
        length = min(_LONG, self._sizes.long)
        since_kill: dict[str, list[float]] = {system: [] for system in self._commands}
        since_launch: dict[str, list[float]] = {system: [] for system in self._commands}
        for _ in range(_TURNS):
            for system in self._commands:
                killed, launched = await self._kill(system, 0)
                since_kill[system].append(killed)
                since_launch[system].append(launched)
        self._add("kill -9 to going on, in a new process", since_kill, median, "s")
        replays = {}
        for system, alone in since_launch.items():
            _, launched = await self._kill(system, length)
            replays[system] = [max(0.0, launched - median(alone))]
        self._add(f"the same after {length:,} steps: longer by", replays, median, "s")

    async def _kill(self, system: str, length: int) -> tuple[float, float]:
        """Return the seconds until the run goes on: from the kill, and from the next launch."""
        async with self._process(system) as victim:
            await _ask(victim, "hold", length)
            await asyncio.sleep(random.uniform(0, 1))
            killed = time.monotonic()
            await victim.kill()
            async with self._process(system) as process:
                went_on = await _ask(process, "resumed")
        return went_on - killed, went_on - float(process.greeting)

    def _process(self, system: str) -> Helper:
        module, database = self._commands[system]
        return Helper(f"peers.{module}", database, greets=True)

    def _add(
        self,
        name: str,
        found: dict[str, list[Any]],
        summary: Callable[[list[Any]], float],
        unit: str,
    ) -> None:
        ours = summary(found[OURS])
        for system, results in found.items():
            value = summary(results)
            self._figures.add(
                f"{name}: {system}",
                value,
                unit,
                ratio=value / ours if system != OURS and ours else None,
                to=OURS,
                system=system,
                same_as=name,
            )


async def _in_turns(peers: dict[str, Helper], turns: int, *words: object) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {system: [] for system in peers}
    for _ in range(turns):
        for system, peer in peers.items():
            found[system].append(await _ask(peer, *words))
    return found


def _flat_median(turns: list[list[float]]) -> float:
    return median([value for turn in turns for value in turn])


def _first_median(turns: list[tuple[float, float]]) -> float:
    return median([first for first, _ in turns])


def _second_median(turns: list[tuple[float, float]]) -> float:
    return median([second for _, second in turns])


def _p95_median(turns: list[list[float]]) -> float:
    return median([percentile(turn, 95) for turn in turns])


@asynccontextmanager
async def _database(postgres: str) -> AsyncIterator[str]:
    """Give the URL of a new database of a PostgreSQL server, dropped in the end."""
    import psycopg

    name = f"bench_{uuid.uuid4().hex[:8]}"
    server = await psycopg.AsyncConnection.connect(postgres, autocommit=True)
    async with server:
        await server.execute(f"CREATE DATABASE {name}")
        try:
            head, _, options = postgres.partition("?")
            base = head.rpartition("/")[0] if head.count("/") > 2 else head
            yield f"{base}/{name}" + (f"?{options}" if options else "")
        finally:
            await server.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _ask(process: Helper, *words: object) -> Any:
    return json.loads(await process.ask(" ".join(map(str, words))))

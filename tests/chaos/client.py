"""A client process under chaos: many lives of runs side by side, each told in the history.

    python -m tests.chaos.client ADDRESS DIRECTORY --name c0 --seed 7 --first 0 [--worker]
        [--way PORT=OTHER ...]

It starts new runs until its stdin says `drain`, ends when their lives have ended, and dies with its
stdin. What it does is drawn from the seed, its name and the number of the life.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import os
import random
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from streamline import InvalidState, RunCancelled, RunFailed, ServerUnavailable, Streamline
from streamline.errors import RunConflict, RunNotFound, StepNotFound
from streamline.handles import RunHandle
from tests.chaos import flows
from tests.chaos.haste import hasten
from tests.chaos.operations import FLOWS, OPERATIONS, Operation, Outcome
from tests.chaos.trail import Trail
from tests.chaos.ways import detour
from tests.chaos.worker import INLINE_LIMIT, SERVER_TIMEOUT, log_to_stderr, start

REFUSED = (InvalidState, RunCancelled, RunFailed, RunConflict, RunNotFound, StepNotFound)
"""What a caller may be told, beside ServerUnavailable and TimeoutError; all else is a finding."""
PATIENCE = 60.0
_log = logging.getLogger("chaos")


class History:
    """Calls, and what came of them.

    Args:
        trail: Where it is written.
        name: Of the client; part of the ids of calls.
    """

    def __init__(self, trail: Trail, name: str) -> None:
        self._trail = trail
        self._name = f"{name}/{os.getpid()}"
        self._numbers = itertools.count()

    async def tell(
        self, op: str, run: str, call: Callable[[], Awaitable[object]], **facts: object
    ) -> tuple[Outcome, object]:
        """Call; returns the outcome and what was returned."""
        call_id = f"{self._name}/{next(self._numbers)}"
        self._trail.write(event="call", call=call_id, op=op, run=run, **facts)
        outcome, told, value = "ok", "", None
        try:
            value = await call()
        except (ServerUnavailable, TimeoutError) as error:
            outcome, told = "unknown", type(error).__name__
        except REFUSED as error:
            outcome, told = "refused", f"{type(error).__name__}: {error}"
        except Exception:
            outcome, told = "broken", traceback.format_exc()
        shown = msgspec.to_builtins(value) if isinstance(value, flows.Sum) else None
        self._trail.write(event="return", call=call_id, outcome=outcome, told=told, value=shown)
        return outcome, value


class RunLife:
    """One run and what its client does with it; a `Life`."""

    def __init__(self, client: Client, number: int) -> None:
        self.rng = random.Random(f"{client.seed}/{client.name}/{number}")
        self.flow = self.rng.choices(list(FLOWS), list(FLOWS.values()))[0]
        self.seed = self.rng.randrange(100_000)
        self._delay = self.rng.choice((None, None, None, round(self.rng.uniform(0.2, 3), 3)))
        self._anonymous = self.rng.random() < 0.15
        # Some runs are shared: every client starts them, and speaks to them.
        shared = self.rng.random() < 0.2
        self._client = client
        self.run = f"{client.name}-{number}"
        if shared:
            common = random.Random(f"{client.seed}/shared/{number}")
            self.flow = common.choice(("chain", "mailing"))
            self.seed, self._delay = common.randrange(100_000), None
            self.run, self._anonymous = f"shared-{number}", False
        self._engine = client.engine

    @property
    def handle(self) -> RunHandle[flows.Sum]:
        return self._engine.handle(self.run)

    async def tell(
        self, op: str, call: Callable[[], Awaitable[object]], **facts: object
    ) -> Outcome:
        return (await self._client.history.tell(op, self.run, call, **facts))[0]

    async def insist(
        self, op: str, call: Callable[[], Awaitable[object]], **facts: object
    ) -> Outcome:
        async with asyncio.timeout(PATIENCE):
            while True:
                outcome = await self.tell(op, call, **facts)
                if outcome != "unknown":
                    return outcome
                await asyncio.sleep(0.1)

    async def start(self, op: str = "start", **options: object) -> Outcome:
        flow = flows.registry.find(self.flow).options(
            engine=self._engine, id=self.run, delay=self._delay, **options
        )
        facts = {"flow": self.flow, "seed": self.seed, "delay": self._delay}
        return await self.insist(op, lambda: flow.start(self.seed), **facts)

    async def _start_without_id(self) -> Outcome:
        flow = flows.registry.find(self.flow).options(engine=self._engine, delay=self._delay)

        async def begin() -> None:
            self.run = (await flow.start(self.seed)).id
            self._client.trail.write(event="named", run=self.run)

        facts = {"flow": self.flow, "seed": self.seed, "delay": self._delay}
        outcome, _ = await self._client.history.tell("start_anonymous", "", begin, **facts)
        if outcome == "ok":
            # When it was asked for is in the other call: the delay counts from there.
            await self.tell("start", self._nothing, **facts | {"delay": None})
        return outcome

    async def _nothing(self) -> None:
        """Be told of the run by its new name."""

    async def until_waiting(self, name: str) -> bool:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    run = await self.handle.get()
                    if run.status.ended:
                        return False
                    if any(slot.name == name for slot in run.awaiting):
                        return True
                except (ServerUnavailable, RunNotFound):
                    pass
                await asyncio.sleep(0.15)

    def mend(self) -> None:
        flows.flag_of(flows.place.directory, self.run).touch()

    async def live(self) -> None:
        """Start the run, do with it what is drawn, and wait for its result."""
        if self._anonymous and self.flow != "brittle":
            if await self._start_without_id() != "ok":
                return
        else:
            await self.start()
        drawn = [(name, op) for name, op in OPERATIONS.items() if self._draws(name, op)]
        during = [self._act(name, op) for name, op in drawn if not op.after]
        await asyncio.gather(self._result(), *during)
        for name, op in drawn:
            if op.after:
                await self._act(name, op)
                await self._result()

    def _draws(self, name: str, op: Operation) -> bool:
        fits = not op.flows or self.flow in op.flows
        return fits and self._rng_of(name).random() < op.chance

    def _rng_of(self, name: str) -> random.Random:
        return random.Random(f"{self._client.seed}/{self._client.name}/{self.run}/{name}")

    async def _act(self, name: str, op: Operation) -> None:
        rng = self._rng_of(name)
        if not op.after:
            await asyncio.sleep(rng.uniform(0, op.within))
        await op.act(self, rng)

    async def _result(self) -> None:
        await self.insist("result", lambda: self.handle.result(10))


class Client:
    """A number of lives at once, for as long as it isn't told to drain."""

    def __init__(self, engine: Streamline, directory: Path, given: argparse.Namespace) -> None:
        self.engine = engine
        self.name: str = given.name
        self.seed: int = given.seed
        self.trail = Trail(directory / f"history-{given.name}-{os.getpid()}.jsonl")
        self.history = History(self.trail, given.name)
        self._drain = asyncio.Event()
        self._numbers = itertools.count(given.first)
        self._size: int = given.size

    def drain(self) -> None:
        """Start no more lives."""
        self._drain.set()

    async def run(self) -> None:
        """Live; return when drained."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._size):
                group.create_task(self._one_after_another())

    async def _one_after_another(self) -> None:
        while not self._drain.is_set():
            life = RunLife(self, next(self._numbers))
            try:
                await life.live()
            except TimeoutError:
                self.trail.write(event="gave up", run=life.run)
            except Exception:
                self.trail.write(event="fault", run=life.run, told=traceback.format_exc())


def _obey_stdin(loop: asyncio.AbstractEventLoop, client: Client) -> None:
    def watch() -> None:
        while os.read(0, 1024):  # whatever is said means `drain`
            loop.call_soon_threadsafe(client.drain)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


async def main() -> None:
    """Be a client."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--lease", type=float, default=2.5)
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--way", action="append", default=[])
    given = parser.parse_args()
    detour(given.way)
    flows.place.settle(given.directory)
    hasten()
    engine = Streamline(
        given.address,
        worker=given.worker,
        lease=given.lease,
        server_timeout=SERVER_TIMEOUT,
        registry=flows.registry,
        inline_limit=INLINE_LIMIT,
    )
    client = Client(engine, given.directory, given)
    _obey_stdin(asyncio.get_running_loop(), client)
    await start(engine)
    _log.info("ready")
    await client.run()
    await engine.stop(3)
    _log.info("drained")
    client.trail.write(event="drained")


if __name__ == "__main__":
    log_to_stderr()
    asyncio.run(main())

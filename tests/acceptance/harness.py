"""Worker processes to be killed, and a load of runs for them to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from streamline import InvalidState, RunFailed, ServerUnavailable, Streamline
from streamline.handles import RunHandle
from tests.acceptance.apps import flows
from tests.acceptance.apps.worker import address_of
from tests.acceptance.checker import ENDED, describe

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
"""Seconds that anything may take that should take less than one."""
END = 120.0
"""Seconds that a run under fire may take, on a busy machine."""


class WorkerProcess:
    """One worker process. It stands by, imports done, until `go`."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its pid, also after its end."""
        assert self._process is not None
        return self._process.pid

    async def launch(self) -> Self:
        """Start it and return at once; `go` makes it work."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        return self

    async def go(self) -> Self:
        """Let it work; return when its engine has started."""
        await self.say("go", after="standing by")
        await self.expect("ready")
        return self

    async def say(self, word: str, *, after: str) -> None:
        """Write a line to it once it has said something."""
        assert self._process is not None
        assert self._process.stdin is not None
        await self.expect(after)
        self._process.stdin.write(f"{word}\n".encode())

    async def kill(self) -> None:
        """End it by SIGKILL."""
        self._signal(signal.SIGKILL)
        await self._reap()

    def freeze(self) -> None:
        """Stop it by SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM."""
        self._signal(signal.SIGTERM)

    async def stopped(self) -> None:
        """Wait until it has ended in good order."""
        await self.expect("stopped")
        await self._reap()

    async def ended(self) -> int:
        """Wait until it has ended, however; return its exit code."""
        assert self._process is not None
        async with asyncio.timeout(PATIENCE):
            await self._process.wait()
        await self._reap()
        assert self._process.returncode is not None
        return self._process.returncode

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def _reap(self) -> None:
        assert self._process is not None
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            await self._process.stdout.read()
        await self._process.wait()

    async def expect(self, line: str) -> None:
        """Wait until it says something."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE):
                found = await self._process.stdout.readline()
        except TimeoutError:
            found = b"(nothing)"
        assert found.decode().strip() == line, (
            f"worker {self.pid} said {found!r} instead of {line!r}; its log:\n{self.tail()}"
        )

    def tail(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])


class Site:
    """A database, and the processes that work on it. A context manager that ends them all."""

    def __init__(self, uri: str, directory: Path, *, database: str, lease: str = "3s") -> None:
        self.uri = uri
        self.name = database
        self.lease = lease
        self.workers: list[WorkerProcess] = []
        self._directory = directory
        self._standby: WorkerProcess | None = None

    async def __aenter__(self) -> Self:
        self._client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(self.uri, tz_aware=True)
        self.database: AsyncDatabase[dict[str, Any]] = self._client[self.name]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers:
            await worker.kill()
        if error is not None:
            sys.stderr.write(f"logs of the workers: {self._directory}\n{self._complaints()}\n")
        await self._client.close()

    def _complaints(self) -> str:
        lines = [
            line
            for log in sorted(self._directory.glob("worker-*.log"))
            for line in log.read_text(errors="replace").splitlines()
            if " INFO " not in line
        ]
        return "\n".join(lines[-60:])

    @property
    def address(self) -> str:
        """The URI with the database in its path."""
        return address_of(self.uri, self.name)

    async def standby(self, *options: str) -> WorkerProcess:
        """Start a worker process that waits for its `go`."""
        return await self.run("worker", "--lease", self.lease, *options)

    async def run(self, app: str, *options: str) -> WorkerProcess:
        """Start a process of one of the apps."""
        command = [sys.executable, "-m", f"tests.acceptance.apps.{app}", self.uri, self.name]
        log = self._directory / f"worker-{len(self.workers)}.log"
        worker = WorkerProcess([*command, *options], log)
        self.workers.append(worker)
        return await worker.launch()

    async def work(self, *options: str) -> WorkerProcess:
        """Start a worker process; return when it works."""
        return await (await self.standby(*options)).go()

    def client(self, **options: Any) -> Streamline:
        """Return an engine that works nothing itself."""
        return Streamline(self.address, worker=False, registry=flows.registry, **options)

    async def until(
        self,
        what: str,
        read: Callable[[], Awaitable[T]],
        accept: Callable[[T], bool] = bool,
        *,
        within: float = PATIENCE,
    ) -> T:
        """Read again and again until what is found is accepted.

        Raises:
            AssertionError: It wasn't in time; with the runs that are under way.
        """
        found: Any = None
        try:
            async with asyncio.timeout(within):
                while not accept(found := await read()):  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(
                f"not within {within:g} s: {what}; found {found!r}. Under way are "
                f"{await self.under_way()}"
            ) from None
        return found

    async def under_way(self) -> str:
        """Describe the runs that have not ended."""
        runs = self.database.workflow_runs
        return describe(await runs.find({"status": {"$nin": ENDED}}).to_list())

    async def in_flight(self) -> int:
        """How many runs have not ended."""
        return await self.database.workflow_runs.count_documents({"status": {"$nin": ENDED}})

    async def effects(self, **query: Any) -> int:
        """How many effects match."""
        return await self.database.effects.count_documents(query)


class Load:
    """Runs of `mixed`, so many at a time, each with its messages, its approval and its result.

    Args:
        site: Where.
        engine: A client.
        rng: For what is random about the callers.
        size: How many runs are kept in flight.
    """

    def __init__(self, site: Site, engine: Streamline, rng: random.Random, *, size: int) -> None:
        self.done = 0
        self.sent: dict[str, list[str]] = {}
        self._wins: dict[str, list[int]] = {}
        self._site = site
        self._engine = engine
        self._rng = rng
        self._size = size
        self._lives: set[asyncio.Task[None]] = set()
        self._open = True
        self._started = 0
        self._failure: BaseException | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Keep the runs in flight within the context; afterwards let all of them end."""
        self._fill()
        clerk = asyncio.create_task(self._approve())
        try:
            yield self
            self._open = False
            await self._finish()
        finally:
            self._open = False
            for task in [clerk, *self._lives]:
                task.cancel()
            await asyncio.gather(clerk, *self._lives, return_exceptions=True)

    async def reach(self, done: int, *, within: float = PATIENCE) -> None:
        """Wait until so many runs are done."""

        async def read() -> int:
            self.check()
            return self.done

        await self._site.until(f"{done} runs done", read, lambda n: n >= done, within=within)

    def check(self) -> None:
        """Raise what went wrong with a run."""
        if self._failure is not None:
            raise self._failure

    async def _finish(self) -> None:
        async def read() -> int:
            self.check()
            return len(self._lives)

        await self._site.until("all runs have ended", read, lambda left: left == 0, within=END)
        self.check()

    def _fill(self) -> None:
        while self._open and len(self._lives) < self._size:
            self._started += 1
            task = asyncio.create_task(self._live(self._started))
            self._lives.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._lives.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
        else:
            self.done += 1
        self._fill()

    async def _live(self, number: int) -> None:
        seed = self._rng.randrange(100_000)
        run_id = f"run-{number}-{seed}"
        start = flows.mixed.options(id=run_id, engine=self._engine).start
        run = await persist(lambda: start(seed))
        mails = [seed + index for index in range(flows.MAILS)]
        self.sent[run_id] = [f"mail-{index}" for index in range(flows.MAILS)]
        self._wins[run_id] = []
        for index, mail in enumerate(mails):
            await asyncio.sleep(self._rng.uniform(0, 1))
            for _ in range(self._rng.choice([1, 1, 2])):  # a repeated id counts once
                await persist(lambda mail=mail, index=index: _send(run, mail, index))
        try:
            result = await persist(run.result, within=END)
        except (RunFailed, TimeoutError) as error:
            found = await self._site.database.workflow_runs.find({"_id": run_id}).to_list()
            ran = await self._site.database.effects.find({"run": run_id}).to_list()
            raise AssertionError(f"{error!r}\n{describe(found)}\nexecutions: {ran}") from error
        wins = self._wins.pop(run_id)
        # None at all if the server died before it could say so.
        assert wins in ([], [result.approval]), f"{run_id}: {wins} won, {result} came of it"
        expected = flows.expected(seed, mails, result.approval)
        assert result == expected, f"{run_id}: {result} instead of {expected}"

    async def _approve(self) -> None:
        """Resume whatever waits, twice at once: one of the two must win."""
        while True:
            runs = self._site.database.workflow_runs
            with contextlib.suppress(PyMongoError):  # the server may be away
                open_ = await runs.distinct("_id", {"awaiting.kind": "wait"})
                await asyncio.gather(
                    *(self._resume(run_id, payload) for run_id in open_ for payload in (1, 2))
                )
            await asyncio.sleep(0.1)

    async def _resume(self, run_id: str, payload: int) -> None:
        with contextlib.suppress(InvalidState, ServerUnavailable):
            await self._engine.handle(run_id).resume(payload, name="approve")
            self._wins[run_id].append(payload)


async def _send(run: RunHandle[Any], mail: int, index: int) -> None:
    await run.send("mail", mail, id=f"mail-{index}")


async def persist(operation: Callable[[], Awaitable[T]], *, within: float = 60) -> T:
    """Call until the server is there."""
    async with asyncio.timeout(within):
        while True:
            try:
                return await operation()
            except ServerUnavailable:
                await asyncio.sleep(0.1)

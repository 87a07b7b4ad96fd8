"""The place of a chaos run: servers, proxies, worker and client processes, and their faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pymongo
from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from tests.acceptance.apps.worker import address_of
from tests.chaos.faults import Fault
from tests.chaos.proxy import Proxy
from tests.chaos.trail import Trail
from tests.servers import HOST, Mongod, ReplicaSet

ROOT = Path(__file__).parents[2]
DATABASE = "chaos"
WORKERS = 2
CLIENTS = 2
DISK_MB = 700


class Child:
    """A process of the harness: killed, frozen, and started again."""

    def __init__(self, name: str, module: str, options: Callable[[int], list[str]]) -> None:
        self.name = name
        self.lives = 0
        self.frozen = False
        self._module = module
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    async def launch(self, directory: Path) -> None:
        """Start it, or its next life."""
        options = self._options(self.lives)
        self.lives += 1
        with (directory / f"{self.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module, *options),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    @property
    def running(self) -> bool:
        """Whether it has been started and hasn't ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Of its present life, or of the last."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def kill(self) -> None:
        """End it by SIGKILL."""
        self.signal(signal.SIGKILL)
        self.frozen = False
        if self._process is not None:
            await self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()

    def freeze(self) -> None:
        """Stop it."""
        self.frozen = True
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.frozen = False
        self.signal(signal.SIGCONT)

    async def drain(self, within: float) -> bool:
        """Let a client come to an end; False if it doesn't, and was killed."""
        if not self.running:
            return True
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"drain\n")
        try:
            async with asyncio.timeout(within):
                await self._process.wait()
            return True
        except TimeoutError:
            await self.kill()
            return False


class Site:
    """Servers and processes; an async context manager through `opened`.

    Args:
        topology: `single` (a set of one), `set` (three nodes), or `full` (as single, on a small
            disk that can be filled). Each process has a way of its own to each node, by a proxy.
        directory: For logs and trails.
        seed: For the clients.
    """

    def __init__(self, topology: str, directory: Path, seed: int) -> None:
        self.topology = topology
        self.directory = directory
        self.seed = seed
        self.proxies: list[Proxy] = []
        self._ways: list[dict[int, int]] = []
        self.workers: list[Child] = []
        self.clients: list[Child] = []
        self.trail = Trail(directory / "faults.jsonl")
        self._nodes: list[Mongod] = []
        self._set: ReplicaSet | None = None
        self._servers = asyncio.Lock()
        self._healing: set[asyncio.Task[None]] = set()
        self._hurt_nodes: set[Mongod] = set()
        self._disk: Path | None = None

    # -- opening ----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Site]:
        """Start everything; end everything."""
        async with contextlib.AsyncExitStack() as stack:
            if self.topology == "full":
                stack.enter_context(_small_disk(self._use_disk))
            await asyncio.to_thread(self._start_servers)
            stack.push_async_callback(asyncio.to_thread, self._stop_servers)
            client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(self.uri, tz_aware=True)
            stack.push_async_callback(client.close)
            self.database: AsyncDatabase[dict[str, Any]] = client[DATABASE]
            for _ in range(WORKERS + CLIENTS):
                way = {}
                for node in self._nodes:
                    proxy = await stack.enter_async_context(Proxy(HOST, node.port))
                    self.proxies.append(proxy)
                    way[node.port] = proxy.port
                self._ways.append(way)
            stack.push_async_callback(self._end_children)
            await self._start_children()
            yield self

    def _use_disk(self, disk: Path) -> None:
        self._disk = disk

    def _start_servers(self) -> None:
        if self.topology == "set":
            self._set = ReplicaSet(3).start()
            self._nodes = self._set.nodes
            return
        before = tempfile.tempdir
        tempfile.tempdir = None if self._disk is None else str(self._disk)
        try:
            self._nodes = [Mongod().start()]
        finally:
            tempfile.tempdir = before

    def _stop_servers(self) -> None:
        for node in self._nodes:
            node.stop()

    @property
    def uri(self) -> str:
        """The way to the servers that no fault touches."""
        return self._nodes[0].uri if self._set is None else self._set.uri

    @property
    def address(self) -> str:
        """`uri` with the database."""
        return address_of(self.uri, DATABASE)

    def _detour(self, index: int) -> list[str]:
        """The options by which one process goes through its proxies."""
        return [f"--way={port}={proxy}" for port, proxy in self._ways[index].items()]

    def _worker(self, index: int) -> Child:
        def options(life: int) -> list[str]:
            # Every other life of a worker has a wall clock that jumps.
            jumps = ["--jumps", f"{self.seed}/{index}/{life}"] if (index + life) % 2 else []
            return [self.address, str(self.directory), *jumps, *self._detour(index)]

        return Child(f"worker-{index}", "tests.chaos.worker", options)

    def _client(self, index: int) -> Child:
        def options(life: int) -> list[str]:
            return [
                *(self.address, str(self.directory), *self._detour(WORKERS + index)),
                *("--name", f"c{index}", "--seed", str(self.seed), "--first", str(life * 1000)),
                *(["--worker"] if index == 0 else []),
            ]

        return Child(f"client-{index}", "tests.chaos.client", options)

    async def _start_children(self) -> None:
        self.workers = [self._worker(index) for index in range(WORKERS)]
        self.clients = [self._client(index) for index in range(CLIENTS)]
        for child in self.children:
            await child.launch(self.directory)

    @property
    def children(self) -> list[Child]:
        """All processes but the servers."""
        return [*self.workers, *self.clients]

    async def _end_children(self) -> None:
        for task in self._healing:
            task.cancel()
        await asyncio.gather(*self._healing, return_exceptions=True)
        for child in self.children:
            await child.kill()

    # -- faults -----------------------------------------------------------------------------------

    async def go_through(self, schedule: list[Fault]) -> None:
        """Let the faults happen, each at its time; heal all of them."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for fault in schedule:
            await asyncio.sleep(max(0.0, began + fault.at - loop.time()))
            self.trail.write(event="fault", kind=fault.kind, target=fault.target, lasts=fault.lasts)
            task = asyncio.create_task(self._suffer(fault))
            self._healing.add(task)
            task.add_done_callback(self._healing.discard)
        await asyncio.gather(*self._healing)

    async def _suffer(self, fault: Fault) -> None:
        what, _, whom = fault.kind.partition(" ")
        if whom in ("worker", "client"):
            children = self.workers if whom == "worker" else self.clients
            await self._hurt_child(what, children[fault.target % len(children)], fault.lasts)
        elif whom in ("primary", "secondary"):
            await self._hurt_node(what, whom, fault)
        elif fault.kind == "step down":
            await asyncio.to_thread(_step_down, self.uri)
        elif fault.kind == "full disk":
            await self._fill_disk(fault.lasts)
        else:
            await self._hurt_proxy(fault)

    async def _hurt_child(self, what: str, child: Child, lasts: float) -> None:
        if child.frozen or not child.running:
            return
        if what == "freeze":
            child.freeze()
            await asyncio.sleep(lasts)
            child.thaw()
            return
        await child.kill()
        await asyncio.sleep(lasts)
        await child.launch(self.directory)

    async def _hurt_proxy(self, fault: Fault) -> None:
        proxy = self.proxies[fault.target % len(self.proxies)]
        rng = random.Random(fault.target)
        match fault.kind:
            case "cut":
                proxy.cut()
            case "refuse":
                proxy.cut(refuse=True)
            case "slow":
                proxy.slow(rng.uniform(0.02, 0.4))
            case "stall":
                proxy.stall(lossy=False)
            case "lose":
                proxy.stall(lossy=True)
            case "deaf":
                proxy.stall("down", lossy=True)
            case "mute":
                proxy.stall("up", lossy=rng.random() < 0.5)
        await asyncio.sleep(fault.lasts)
        if fault.kind != "cut":
            proxy.heal()

    async def _hurt_node(self, what: str, whom: str, fault: Fault) -> None:
        async with self._servers:
            node = await asyncio.to_thread(self._pick, whom, fault.target)
            if node is None:
                return
            self._hurt_nodes.add(node)
            (node.kill if what == "kill" else node.freeze)()
        await asyncio.sleep(fault.lasts)
        async with self._servers:
            await asyncio.to_thread(node.restart if what == "kill" else node.thaw)
            self._hurt_nodes.discard(node)

    def _pick(self, whom: str, target: int) -> Mongod | None:
        """Return a node that may be hurt: at most one at a time is, else the set had no majority
        for longer than the schedule says."""
        if self._hurt_nodes:
            return None
        if self._set is None:
            return self._nodes[0]
        primary = self._set.primary()
        others = [node for node in self._nodes if node is not primary]
        return primary if whom == "primary" else others[target % len(others)]

    async def _fill_disk(self, lasts: float) -> None:
        assert self._disk is not None
        async with self._servers:
            if self._hurt_nodes:
                return
            ballast = self._disk / "ballast"
            await asyncio.to_thread(_fill, ballast)
            # Its journal is allocated ahead; a checkpoint needs room at once.
            await asyncio.to_thread(_checkpoint, self.uri)
            await asyncio.sleep(lasts)
            ballast.unlink()
            # A mongod that can't write its journal aborts; another server process takes its place.
            if await asyncio.to_thread(_is_dead, self._nodes[0].pid):
                self.trail.write(event="aborted", node=self._nodes[0].address)
                await asyncio.to_thread(self._nodes[0].restart)

    # -- peace ------------------------------------------------------------------------------------

    async def make_peace(self) -> None:
        """Heal everything, and let the clients come to their end."""
        for proxy in self.proxies:
            proxy.heal()
        for child in self.children:
            child.thaw()
            if not child.running:
                await child.launch(self.directory)
        drained = await asyncio.gather(*(client.drain(45) for client in self.clients))
        for client, in_time in zip(self.clients, drained, strict=True):
            if not in_time:
                self.trail.write(event="not drained", client=client.name)


@contextlib.contextmanager
def _small_disk(use: Callable[[Path], None]) -> Any:
    with tempfile.TemporaryDirectory(prefix="chaos-disk-") as directory:
        options = ("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", directory)
        subprocess.run(["mount", *options], check=True)
        try:
            use(Path(directory))
            yield
        finally:
            subprocess.run(["umount", "-l", directory], check=True)


def _fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 1_000_000)
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(b"\0" * 512)


def _checkpoint(uri: str) -> None:
    with (
        contextlib.suppress(PyMongoError),
        MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=2000) as client,
        pymongo.timeout(3),
    ):
        client.admin.command("fsync")


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _step_down(uri: str) -> None:
    with (
        contextlib.suppress(PyMongoError),
        MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=3000) as client,
    ):
        client.admin.command("replSetStepDown", 3, secondaryCatchUpPeriodSecs=1, force=True)

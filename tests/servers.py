"""Real mongod processes for tests: started, killed, frozen and restarted at will.

The API blocks; from async code go through `asyncio.to_thread`. Every server has a guard, a tiny
process that outlives a killed test run just long enough to kill the server and remove its files.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from streamline.store.embedded import find_mongod

HOST = "127.0.0.1"
_START_S = 30.0
_STOP_S = 30.0
_POLL_S = 0.01
_PORT_ATTEMPTS = 3


class Mongod:
    """One mongod on a free port and a temporary directory; a context manager.

    Args:
        replica_set: Name of the set it belongs to; None for a standalone server.
        initiate: Make it the primary of a set of one; False when a `ReplicaSet` does so.
        port: Where it listens; a free port by default.
        parameters: Server parameters (`--setParameter`).
    """

    def __init__(
        self,
        replica_set: str | None = "rs",
        *,
        initiate: bool = True,
        port: int | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        self._set = replica_set
        self._initiate = initiate and replica_set is not None
        self._parameters = parameters or {}
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._wanted_port = port
        self.port = 0

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{HOST}:{self.port}"

    @property
    def uri(self) -> str:
        """The URI of this very server, whatever set it belongs to."""
        return f"mongodb://{self.address}/?directConnection=true"

    @property
    def pid(self) -> int:
        """The pid of the running process."""
        assert self._process is not None, "mongod isn't running"
        return self._process.pid

    def __enter__(self) -> Mongod:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> Mongod:
        """Start it; return when it takes writes (a member of a larger set: when it listens)."""
        self._directory = Path(tempfile.mkdtemp(prefix="streamline-mongod-"))
        try:
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                self.port = self._wanted_port or free_port()
                try:
                    self._launch()
                    break
                except MongodFailed:
                    if attempt == _PORT_ATTEMPTS:
                        raise
            if self._initiate:
                initiate(self._set or "", [self])
        except BaseException:
            self.stop()
            raise
        return self

    def restart(self) -> None:
        """Start it again after `kill`, on the same port and data; end it first if it runs."""
        self.kill()
        self._launch()
        if self._initiate:
            wait_for_primary([self])

    def kill(self) -> None:
        """End it by SIGKILL; its data stays."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Suspend it: connections stay open, and nothing answers."""
        suspend(self.pid)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove its data."""
        # Its data goes too: there is nothing that a gentle shutdown, of a second, could save.
        self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _launch(self) -> None:
        assert self._directory is not None, "mongod has been stopped: start() it"
        with (self._directory / "mongod.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self._directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # It reads until this process closes the pipe, by ending in whatever way.
        script = f"read _; kill -9 {self.pid}; rm -rf {shlex.quote(str(self._directory))}"
        self._guard = subprocess.Popen(
            ["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True
        )
        self._wait_until_it_listens()

    def _command(self, directory: Path) -> list[str]:
        parameters = {"diagnosticDataCollectionEnabled": "false", **self._parameters}
        return [
            str(find_mongod()),
            *("--quiet", "--nounixsocket", "--bind_ip", HOST, "--port", str(self.port)),
            *("--dbpath", str(directory), "--wiredTigerCacheSizeGB", "0.25"),
            *("--wiredTigerEngineConfigString", "log=(file_max=16MB,prealloc=false)"),
            *(("--replSet", self._set, "--oplogSize", "128") if self._set else ()),
            *(word for name in parameters for word in _parameter(name, parameters[name])),
        ]

    def _wait_until_it_listens(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise MongodFailed(f"mongod ended at once:\n{self._log_tail()}")
            try:
                socket.create_connection((HOST, self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(_POLL_S)
        raise MongodFailed(f"mongod did not listen in {_START_S} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        assert self._directory is not None
        lines = (self._directory / "mongod.log").read_text(errors="replace").splitlines()
        return "\n".join(line[:300] for line in lines[-10:])

    def _end(self, number: signal.Signals) -> None:
        # The guard first: it must not kill a later process of the same pid.
        for process in (self._guard, self._process):
            if process is not None:
                process.send_signal(signal.SIGKILL if process is self._guard else number)
                process.wait(_STOP_S)
                if process.stdin is not None:
                    process.stdin.close()
        self._guard = self._process = None


class ReplicaSet:
    """A replica set of several nodes, with fast elections; a context manager.

    Args:
        size: How many nodes.
    """

    def __init__(self, size: int = 3) -> None:
        self._name = "rs"
        self.nodes = [Mongod(self._name, initiate=False) for _ in range(size)]

    @property
    def uri(self) -> str:
        """The URI that names every node."""
        addresses = ",".join(node.address for node in self.nodes)
        return f"mongodb://{addresses}/?replicaSet={self._name}"

    def __enter__(self) -> ReplicaSet:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> ReplicaSet:
        """Start the nodes; return when there is a primary and the others follow it."""
        try:
            for node in self.nodes:
                node.start()
            initiate(self._name, self.nodes)
        except BaseException:
            self.stop()
            raise
        return self

    def primary(self) -> Mongod:
        """Return the node that takes writes, waiting for an election if need be."""
        return wait_for_primary(self.nodes)

    def stop(self) -> None:
        """End all nodes and remove their data."""
        for node in self.nodes:
            node.stop()


class MongodFailed(Exception):
    """A mongod did not start; the message has the end of its log."""


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def suspend(pid: int) -> None:
    """Stop a process by SIGSTOP; return when each of its threads stands still.

    One thread takes the signal and stops the others; on a busy host that takes some milliseconds.
    """
    os.kill(pid, signal.SIGSTOP)
    while not all(_stands(task) for task in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(_POLL_S)


def _stands(task: Path) -> bool:
    try:
        status = (task / "stat").read_text(errors="replace")
    except OSError:  # The thread has ended meanwhile.
        return True
    return status.rpartition(")")[2].split()[0] in "TtZX"


def initiate(name: str, nodes: list[Mongod]) -> None:
    """Make nodes a replica set; return when one takes writes and the others follow."""
    config = {
        "_id": name,
        "members": [{"_id": index, "host": node.address} for index, node in enumerate(nodes)],
        "settings": {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200},
    }
    with MongoClient[dict[str, Any]](nodes[0].uri, serverSelectionTimeoutMS=10_000) as client:
        client.admin.command("replSetInitiate", config)
    wait_for_primary(nodes)
    for node in nodes:
        _wait_until(node, lambda hello: bool(hello["isWritablePrimary"] or hello["secondary"]))


def wait_for_primary(nodes: list[Mongod]) -> Mongod:
    """Return the one that takes writes; nodes that run no more are skipped."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        for node in nodes:
            if _hello(node).get("isWritablePrimary"):
                return node
        time.sleep(_POLL_S)
    raise MongodFailed(f"no primary in {_START_S} s")


def _wait_until(node: Mongod, reached: Any) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        hello = _hello(node)
        if hello and reached(hello):
            return
        time.sleep(_POLL_S)
    raise MongodFailed(f"{node.address} isn't ready after {_START_S} s")


def _hello(node: Mongod) -> dict[str, Any]:
    try:
        with MongoClient[dict[str, Any]](node.uri, serverSelectionTimeoutMS=300) as client:
            return client.admin.command("hello")
    except (PyMongoError, OperationFailure):
        return {}


def _parameter(name: str, value: object) -> tuple[str, str]:
    return "--setParameter", f"{name}={value}"

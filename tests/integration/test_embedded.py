"""The embedded MongoDB, on real processes: shared, killed, adopted, moved to another port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient, uri_parser

from streamline.errors import ServerUnavailable
from streamline.store.embedded import EmbeddedMongod, find_mongod
from streamline.store.embedded.locks import is_locked
from tests.servers import Mongod, suspend

pytestmark = pytest.mark.mongo

_USER = """
import asyncio, sys
from streamline.store.embedded import EmbeddedMongod

async def main():
    async with EmbeddedMongod(sys.argv[1]) as uri:
        print(uri, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory for one embedded server; checks that nothing is left running on it."""
    path = tmp_path / "embedded"
    yield path
    left = _servers_on(path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [], "mongod was left running"


def _servers_on(path: Path) -> list[int]:
    """Return the pids of the mongods started on a directory, zombies left out."""
    wanted = str(path / "mongodb").encode()
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if wanted in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _has_its_data(path: Path) -> bool:
    """Tell whether a mongod has taken the data of a directory."""
    return is_locked(path / "mongodb" / "mongod.lock")


def _port(uri: str) -> int:
    return int(uri_parser.parse_uri(uri)["nodelist"][0][1])


async def _put(uri: str, key: int) -> None:
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        await client.shop.orders.insert_one({"_id": key})


async def _keys(uri: str) -> list[int]:
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        return sorted([order["_id"] async for order in client.shop.orders.find()])


class _User:
    """Another process that uses the server of a directory."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _USER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def uri(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def leave(self) -> None:
        self._process.communicate("\n")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


async def test_data_survives_stop_and_start(directory: Path) -> None:
    async with EmbeddedMongod(directory) as uri:
        await _put(uri, 1)
    assert _servers_on(directory) == []
    async with EmbeddedMongod(directory) as uri:
        assert await _keys(uri) == [1]


async def test_transactions_and_change_streams_work(directory: Path) -> None:
    async with (
        EmbeddedMongod(directory) as uri,
        AsyncMongoClient[dict[str, Any]](uri) as client,
        await client.shop.watch() as changes,
        client.start_session() as session,
    ):
        async with await session.start_transaction():
            await client.shop.orders.insert_one({"_id": 1}, session=session)
        assert (await changes.next())["operationType"] == "insert"


async def test_two_processes_share_one_server_and_the_last_stops_it(directory: Path) -> None:
    first, second = _User(directory), _User(directory)
    assert first.uri() == second.uri() != ""
    (server,) = _servers_on(directory)
    first.leave()
    assert _servers_on(directory) == [server]
    second.leave()
    assert _servers_on(directory) == []


async def test_two_engines_in_one_process_share_one_server(directory: Path) -> None:
    first, second = EmbeddedMongod(directory), EmbeddedMongod(directory)
    assert await first.start() == await second.start()
    await first.stop()
    await first.stop()
    assert await _keys(await second.start()) == []
    await second.stop()


async def test_four_first_starts_at_once_give_one_server(directory: Path) -> None:
    users = [_User(directory) for _ in range(4)]
    uris = {user.uri() for user in users}
    assert len(uris) == 1
    assert len(_servers_on(directory)) == 1
    for user in users:
        user.leave()


@pytest.mark.kill
async def test_a_server_whose_users_were_all_killed_is_adopted(directory: Path) -> None:
    users = [_User(directory), _User(directory)]
    uri = {user.uri() for user in users}.pop()
    await _put(uri, 1)
    for user in users:
        user.kill()
    (orphan,) = _servers_on(directory)
    async with EmbeddedMongod(directory) as adopted:
        assert _servers_on(directory) == [orphan]
        assert adopted == uri
        assert await _keys(adopted) == [1]


@pytest.mark.kill
async def test_a_killed_server_is_started_again_on_its_data(directory: Path) -> None:
    async with EmbeddedMongod(directory) as uri:
        await _put(uri, 1)
        os.kill(_servers_on(directory)[0], signal.SIGKILL)
        async with EmbeddedMongod(directory) as again:
            assert again == uri
            assert await _keys(again) == [1]


async def test_a_taken_port_moves_the_replica_set_to_another(directory: Path) -> None:
    async with EmbeddedMongod(directory) as uri:
        await _put(uri, 1)
    with socket.socket() as intruder:
        intruder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        intruder.bind(("127.0.0.1", _port(uri)))
        intruder.listen()  # It accepts connections, and is silent.
        async with EmbeddedMongod(directory) as moved:
            assert moved != uri
            assert await _keys(moved) == [1]
            await _put(moved, 2)
    async with EmbeddedMongod(directory) as uri:
        assert uri == moved
        assert await _keys(uri) == [1, 2]


async def test_a_port_taken_after_a_crash_loses_nothing(directory: Path) -> None:
    user = _User(directory)
    uri = user.uri()
    await _put(uri, 1)
    os.kill(_servers_on(directory)[0], signal.SIGKILL)
    user.kill()
    with Mongod(port=_port(uri)):
        async with EmbeddedMongod(directory) as moved:
            assert _port(moved) != _port(uri)
            assert await _keys(moved) == [1]


async def test_an_unanswering_server_is_an_error_that_names_it(directory: Path) -> None:
    async with EmbeddedMongod(directory):
        (server,) = _servers_on(directory)
        suspend(server)
        try:
            with pytest.raises(ServerUnavailable, match=f"pid {server}.*gives no answer"):
                await EmbeddedMongod(directory, startup_timeout="500ms").start()
        finally:
            os.kill(server, signal.SIGCONT)


@pytest.mark.parametrize("reached", [_servers_on, _has_its_data], ids=["launched", "on its data"])
async def test_a_start_that_is_cancelled_leaves_nothing(
    directory: Path, reached: Callable[[Path], object]
) -> None:
    starting = asyncio.create_task(EmbeddedMongod(directory).start())
    while not reached(directory):  # noqa: ASYNC110 - a process begins without an event
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    async with asyncio.timeout(10):
        while _servers_on(directory):  # noqa: ASYNC110 - a process ends without an event
            await asyncio.sleep(0.02)


async def test_a_start_that_is_too_slow_is_an_error_and_leaves_nothing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its mongod is forked and listens, but the launcher stays: nothing tells how fast a host is.
    slow = tmp_path / "slow-mongod"
    slow.write_text(f'#!/bin/sh\n"{find_mongod()}" "$@"\nsleep 5\n')
    slow.chmod(0o755)
    monkeypatch.setenv("STREAMLINE_MONGOD", str(slow))
    with pytest.raises(ServerUnavailable, match="in time"):
        await EmbeddedMongod(directory, startup_timeout="2s").start()
    assert _servers_on(directory) == []


def test_a_program_that_never_stops_it_stops_it_as_it_exits(directory: Path) -> None:
    script = (
        "import asyncio, sys; from streamline.store.embedded import EmbeddedMongod;"
        "asyncio.run(EmbeddedMongod(sys.argv[1]).start())"
    )
    subprocess.run([sys.executable, "-c", script, str(directory)], check=True)
    assert _servers_on(directory) == []


async def test_damaged_data_is_an_error_with_the_end_of_the_log(directory: Path) -> None:
    async with EmbeddedMongod(directory):
        pass
    (directory / "mongodb" / "WiredTiger.wt").write_bytes(b"not a table")
    with pytest.raises(ServerUnavailable, match=r"(?s)exit code.*WiredTiger.*damaged"):
        await EmbeddedMongod(directory).start()


async def test_an_unusable_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerUnavailable, match=r"file.*Name another"):
        await EmbeddedMongod(tmp_path / "file" / "data").start()


def test_the_named_mongod_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = _program(tmp_path / "mine", "exit 0")
    _program(tmp_path / "mongod", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mongod() == tmp_path / "mongod"
    monkeypatch.setenv("STREAMLINE_MONGOD", str(named))
    assert find_mongod() == named


def test_a_wrongly_named_mongod_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMLINE_MONGOD", "/nowhere/mongod")
    with pytest.raises(ServerUnavailable, match="/nowhere/mongod"):
        find_mongod()


def test_the_mongod_of_the_extra_is_made_executable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binary = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    binary.parent.mkdir(parents=True)
    (tmp_path / "fiftyone" / "__init__.py").write_text("raise AssertionError('imported')")
    _program(binary, "exit 0").chmod(0o644)
    monkeypatch.delenv("STREAMLINE_MONGOD", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_mongod() == binary
    assert os.access(binary, os.X_OK)


def test_without_a_mongod_the_error_names_the_ways(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STREAMLINE_MONGOD", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ServerUnavailable) as raised:
        find_mongod()
    for way in ("[embedded]", "PATH", "STREAMLINE_MONGOD ", "STREAMLINE_MONGODB_URI"):
        assert way in str(raised.value)


async def test_a_broken_mongod_is_an_error_with_its_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    complaint = "error while loading shared libraries: libcrypto.so.1.1"
    broken = _program(tmp_path / "broken", f"echo {complaint} >&2; exit 127")
    monkeypatch.setenv("STREAMLINE_MONGOD", str(broken))
    with pytest.raises(ServerUnavailable, match=f"(?s)127.*{complaint}.*Install it"):
        await EmbeddedMongod(tmp_path / "data").start()


async def test_a_file_that_is_no_program_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"\x00\x01")
    text.chmod(0o755)
    monkeypatch.setenv("STREAMLINE_MONGOD", str(text))
    with pytest.raises(ServerUnavailable, match="can't be executed"):
        await EmbeddedMongod(tmp_path / "data").start()


def _program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path

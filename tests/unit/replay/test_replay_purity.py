"""A body that does I/O, blocks for ever or ends the process gets a clear error."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from replay_player import Player, play, step, workflow

from streamline.errors import BodyNotPure
from streamline.replay import Failed


@step
def charge(value: int = 1) -> int:
    return value * 10


async def _sock() -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", 9))


async def _to_thread() -> None:
    await asyncio.to_thread(len, "x")


async def _executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, len, "x")


async def _subprocess() -> None:
    await asyncio.create_subprocess_exec(sys.executable, stdout=subprocess.PIPE)


async def _shell() -> None:
    await asyncio.create_subprocess_shell("true")


async def _open_connection() -> None:
    await asyncio.open_connection("127.0.0.1", 9)


async def _start_server() -> None:
    await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)


async def _getaddrinfo() -> None:
    # As aiohttp does: a task of its own resolves the name, under a timer of the loop's.
    loop = asyncio.get_running_loop()
    handle = loop.call_later(30, lambda: None)
    try:
        await asyncio.shield(asyncio.ensure_future(loop.getaddrinfo("localhost", 80)))
    finally:
        handle.cancel()


async def _reader() -> None:
    asyncio.get_running_loop().add_reader(0, print)


async def _signal() -> None:
    asyncio.get_running_loop().add_signal_handler(2, print)


async def _threadsafe() -> None:
    asyncio.get_running_loop().call_soon_threadsafe(print)


async def _run() -> None:
    asyncio.get_running_loop().run_until_complete(asyncio.get_running_loop().create_future())


IO = [value for name, value in list(globals().items()) if inspect.iscoroutinefunction(value)]
IO = [body for body in IO if body.__name__.startswith("_")]


@pytest.mark.parametrize("body", IO, ids=lambda body: body.__name__.strip("_"))
def test_a_body_that_does_io_is_told_to_move_it_into_a_step(
    body: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    recording = play(workflow(name="flow")(body))
    assert isinstance(recording.error, BodyNotPure)
    assert recording.error.run_id == "run-1"
    assert "@step" in str(recording.error)
    assert "'run-1'" in str(recording.error)


async def _future() -> None:
    await asyncio.get_running_loop().create_future()


async def _event() -> None:
    await charge()
    await asyncio.Event().wait()


async def _deadlock() -> None:
    lock = asyncio.Lock()
    async with lock, lock:
        pass


async def _plain_future() -> None:
    await asyncio.wait([asyncio.Future()])


@pytest.mark.parametrize("body", [_future, _event, _deadlock, _plain_future])
@pytest.mark.parametrize("timeout", [None, "1h"])
def test_a_body_that_nothing_can_wake_fails_at_once(body: Any, timeout: str | None) -> None:
    recording = play(workflow(name="flow", timeout=timeout)(body), first=["charge"])
    assert isinstance(recording.outcome, Failed)
    assert recording.outcome.stuck
    assert isinstance(recording.error, BodyNotPure)
    assert "nothing can resolve" in str(recording.error)


def test_a_body_that_waits_with_a_timeout_is_not_stuck() -> None:
    @workflow
    async def flow() -> str:
        try:
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        except TimeoutError:
            return "late"
        return ""

    assert play(flow).value == "late"


async def test_a_future_of_the_outer_loop_is_refused() -> None:
    outer = asyncio.get_running_loop().create_future()

    @workflow
    async def flow() -> None:
        await outer

    assert "different loop" in str(Player(flow).play().error)
    outer.cancel()


@pytest.mark.parametrize("where", ["main", "task", "after a step"])
def test_a_system_exit_fails_the_run_and_not_the_process(where: str) -> None:
    @workflow
    async def flow() -> None:
        async def leave() -> None:
            sys.exit(3)

        if where == "main":
            sys.exit(3)
        if where == "after a step":
            await charge()
            await leave()
        await asyncio.gather(charge(), leave(), charge())

    recording = play(flow)
    assert isinstance(recording.error, SystemExit)
    assert recording.error.code == 3


def test_a_system_exit_in_a_background_task_leaves_the_others_running() -> None:
    @workflow
    async def flow() -> list[Any]:
        async def leave() -> None:
            sys.exit(3)

        held = asyncio.create_task(leave())
        found = await asyncio.gather(charge(1), charge(2))
        return [*found, type(held.exception()).__name__]

    assert play(flow).value == [10, 20, "SystemExit"]


def test_an_interrupt_of_the_process_is_no_outcome_of_the_run() -> None:
    @workflow
    async def flow() -> None:
        await charge()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(flow)
    assert asyncio._get_running_loop() is None


def test_as_completed_imported_by_name_is_refused_for_coroutines() -> None:
    from streamline.replay import ordered

    @workflow
    async def flow() -> Any:
        return [await done for done in ordered._as_completed([charge(1)])]

    @workflow
    async def with_tasks() -> Any:
        tasks = [asyncio.create_task(charge(n)) for n in range(3)]
        return [await done for done in ordered._as_completed(tasks)]

    recording = play(flow)
    assert isinstance(recording.error, BodyNotPure)
    assert "as_completed" in str(recording.error)
    assert sorted(play(with_tasks).value) == [0, 10, 20]


def test_what_gets_lost_in_the_loop_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    @workflow
    async def flow() -> int:
        def broken() -> None:
            raise ValueError("lost")

        asyncio.get_running_loop().call_soon(broken)
        value: int = await charge()
        return value

    caplog.set_level(logging.WARNING)
    play(flow)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "run-1" in caplog.text


def test_debug_mode_of_asyncio_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    @workflow
    async def flow() -> bool:
        asyncio.get_running_loop().set_debug(True)
        await charge()
        return asyncio.get_running_loop().get_debug()

    assert play(flow).value is False


def test_a_loop_says_that_it_runs_only_while_it_does() -> None:
    @workflow
    async def flow() -> list[bool]:
        loop = asyncio.get_running_loop()
        await charge()
        return [loop.is_running(), loop.is_closed()]

    recording = Player(flow, max_entries=0).play()
    loop = recording.execution._loop
    assert not loop.is_running()
    recording.execution.evict()
    assert loop.is_closed()
    assert play(flow).value == [True, False]

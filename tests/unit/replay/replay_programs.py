"""A small language of workflow bodies, for properties over random programs.

A program is a nested tuple, so that a failing example can be read and pasted. What a program does
is noted in a list that its run returns: the order of its parts is part of the outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from replay_player import step, workflow

from streamline import context as run

Program = tuple[Any, ...]
CHANNELS = ("red", "blue")


@step
def work(value: int) -> int:
    return value


@step
def other(value: int) -> int:
    return value + 100


@step
def fail(value: int) -> None:
    raise ValueError(value)


class Machine:
    """Runs a program in a body."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.queue: asyncio.Queue[int] = asyncio.Queue()
        self.lock = asyncio.Lock()

    async def run(self, program: Program) -> Any:
        """Run a program and note what came of it."""
        value = await getattr(self, f"do_{program[0]}")(*program[1:])
        self.seen.append((program[0], value))
        return value

    async def do_work(self, value: int) -> Any:
        return await work(value)

    async def do_other(self, value: int) -> Any:
        return await other(value)

    async def do_fail(self, value: int) -> None:
        await fail(value)

    async def do_sleep(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return run.now().isoformat()

    async def do_random(self) -> float:
        return run.random()

    async def do_receive(self, channel: str, timeout: float | None) -> Any:
        return await run.receive(channel, timeout=timeout)

    async def do_put(self, value: int) -> None:
        await self.queue.put(value)

    async def do_get(self) -> int:
        return await self.queue.get()

    async def do_locked(self, program: Program) -> Any:
        async with self.lock:
            return await self.run(program)

    async def do_seq(self, *programs: Program) -> Any:
        return [await self.run(program) for program in programs]

    async def do_gather(self, *programs: Program) -> Any:
        found = await asyncio.gather(*map(self.run, programs), return_exceptions=True)
        return [repr(value) for value in found]

    async def do_group(self, *programs: Program) -> Any:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.run(program)) for program in programs]
        return [task.result() for task in tasks]

    async def do_timeout(self, seconds: float, program: Program) -> Any:
        async with asyncio.timeout(seconds):
            return await self.run(program)

    async def do_wait_for(self, seconds: float, program: Program) -> Any:
        return await asyncio.wait_for(self.run(program), seconds)

    async def do_race(self, *programs: Program) -> Any:
        racers = {asyncio.create_task(self.run(program)) for program in programs}
        done, pending = await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        rest = await asyncio.gather(*pending, return_exceptions=True)
        return [*(task.exception() or task.result() for task in done), *map(repr, rest)]

    async def do_completed(self, *programs: Program) -> Any:
        found = []
        for done in asyncio.as_completed(map(self.run, programs)):
            try:
                found.append(await done)
            except Exception as error:
                found.append(repr(error))
        return found

    async def do_caught(self, program: Program, handler: Program) -> Any:
        try:
            return await self.run(program)
        except* Exception as errors:
            self.seen.append(repr(errors.exceptions))
        return await self.run(handler)

    async def do_cleanup(self, program: Program, cleanup: Program) -> Any:
        try:
            return await self.run(program)
        finally:
            await self.run(cleanup)

    async def do_swallow(self, program: Program) -> Any:
        try:
            return await self.run(program)
        except asyncio.CancelledError as error:
            return repr(error)

    async def do_shield(self, program: Program) -> Any:
        return await asyncio.shield(self.run(program))

    async def do_background(self, program: Program) -> None:
        task = asyncio.create_task(self.run(program))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def do_patched(self, name: str, new: Program, old: Program) -> Any:
        return await self.run(new if run.patched(name) else old)


def flow_of(program: Program, **options: Any) -> Any:
    """Return a workflow that runs a program."""

    async def flow() -> list[Any]:
        machine = Machine()
        await machine.run(program)
        return [repr(item) for item in machine.seen]

    return workflow(name="flow", **options)(flow)


_numbers = st.integers(0, 9)
_seconds = st.sampled_from([0, 0.001, 1, 1.5, 2, 60])
_leaves: st.SearchStrategy[Program] = st.one_of(
    st.tuples(st.just("work"), _numbers),
    st.tuples(st.just("work"), _numbers),
    st.tuples(st.just("other"), _numbers),
    st.tuples(st.just("fail"), _numbers),
    st.tuples(st.just("sleep"), _seconds),
    st.tuples(st.just("random")),
    st.tuples(st.just("put"), _numbers),
    st.tuples(st.just("get")),
    st.tuples(st.just("receive"), st.sampled_from(CHANNELS), st.none() | _seconds),
)


def _extend(inner: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    several: Callable[[str], st.SearchStrategy[Program]] = lambda name: st.lists(  # noqa: E731
        inner, min_size=1, max_size=4
    ).map(lambda programs: (name, *programs))
    return st.one_of(
        *map(several, ("seq", "seq", "gather", "group", "race", "completed")),
        st.tuples(st.just("timeout"), _seconds, inner),
        st.tuples(st.just("wait_for"), _seconds, inner),
        st.tuples(st.just("caught"), inner, inner),
        st.tuples(st.just("cleanup"), inner, inner),
        st.tuples(st.just("swallow"), inner),
        st.tuples(st.just("shield"), inner),
        st.tuples(st.just("locked"), inner),
        st.tuples(st.just("background"), inner),
        st.tuples(st.just("patched"), st.sampled_from("ab"), inner, inner),
    )


programs = st.recursive(_leaves, _extend, max_leaves=12)
"""Random programs."""

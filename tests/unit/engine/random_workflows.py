"""Random workflows for the property tests: expression trees, and the body that runs one.

A tree is plain data, so that hypothesis can shrink it. It is *ordered* if its value can't depend on
the order in which steps end: then crashes must not change the value. Races, timeouts around steps
and mailboxes shared by tasks make it *unordered*: then only the journal can tell what is right.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import strategies as st

from streamline import current, receive, set_context, sleep

Tree = tuple[Any, ...]

ORDERED = (
    "step", "flaky", "doomed", "sleep", "context", "seq", "gather", "group", "try", "finally",
    "queue", "event", "lock", "late", "shield", "completed", "sleeps", "child", "spawn", "broken",
)  # fmt: skip
UNORDERED = ("race", "timeout", "mailbox", "wait_for", "cancel", "semaphore")


def trees(kinds: tuple[str, ...], max_leaves: int) -> st.SearchStrategy[Tree]:
    """Return trees made of nodes of these kinds."""
    small = st.integers(0, 3)
    duration = st.sampled_from([0.0, 0.1, 0.3, 1.0, 60.0, 86_400.0])
    leaves: list[st.SearchStrategy[Tree]] = [
        st.tuples(st.just("step"), small, small),  # value, turns of the loop that it takes
        st.tuples(st.just("flaky"), small, st.integers(1, 2)),  # value, failures before it
        st.tuples(st.just("doomed"), small),
        st.tuples(st.just("sleep"), duration),
        st.tuples(st.just("context"), small),
        st.tuples(st.just("broken"), small),
    ]
    if "mailbox" in kinds:
        leaves.append(st.tuples(st.just("mailbox"), st.sampled_from(["a", "b"]), duration))

    def extend(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        several = st.lists(inner, min_size=1, max_size=3).map(tuple)
        nodes: dict[str, st.SearchStrategy[Tree]] = {
            "seq": st.tuples(st.just("seq"), several),
            "gather": st.tuples(st.just("gather"), several),
            "group": st.tuples(st.just("group"), several),
            "completed": st.tuples(st.just("completed"), several),
            "try": st.tuples(st.just("try"), inner, inner),
            "finally": st.tuples(st.just("finally"), inner, inner),
            "queue": st.tuples(st.just("queue"), several),
            "event": st.tuples(st.just("event"), inner, inner),
            "lock": st.tuples(st.just("lock"), several),
            "late": st.tuples(st.just("late"), inner, inner),
            "shield": st.tuples(st.just("shield"), inner),
            "sleeps": st.tuples(st.just("sleeps"), st.lists(duration, min_size=1, max_size=3)),
            "child": st.tuples(st.just("child"), inner),
            "spawn": st.tuples(st.just("spawn"), inner, inner),
            "race": st.tuples(st.just("race"), several),
            "cancel": st.tuples(st.just("cancel"), inner, inner),
            "semaphore": st.tuples(st.just("semaphore"), several),
            "timeout": st.tuples(st.just("timeout"), duration, inner),
            "wait_for": st.tuples(st.just("wait_for"), duration, inner),
        }
        return st.one_of([nodes[kind] for kind in kinds if kind in nodes])

    return st.recursive(st.one_of(leaves), extend, max_leaves=max_leaves)


class Failed(Exception):
    """What steps and bodies of random workflows raise."""


class Body:
    """Runs a tree as a workflow body.

    Args:
        step: The step `work(value, turns)`.
        flaky: The step `flaky(value, failures)`.
        doomed: The step `doomed(value)`, which fails for good.
        nested: The workflow `nested(tree)`, which runs a tree in a child.
        broken: The workflow `broken(value)`, which fails.
    """

    def __init__(
        self,
        step: Callable[[int, int], Awaitable[int]],
        flaky: Callable[[int, int], Awaitable[int]],
        doomed: Callable[[int], Awaitable[int]],
        nested: Any,
        broken: Any,
    ) -> None:
        self._step = step
        self._flaky = flaky
        self._doomed = doomed
        self._nested = nested
        self._broken = broken

    async def run(self, tree: Tree) -> Any:
        """Return the value of a tree; raises what is left uncaught."""
        return await getattr(self, f"_{tree[0]}_node")(*tree[1:])

    async def safely(self, tree: Tree) -> Any:
        """Return the value of a tree, or the name of what it raises."""
        try:
            return await self.run(tree)
        except Exception as error:
            return _name(error)

    async def _step_node(self, value: int, turns: int) -> Any:
        return await self._step(value, turns)

    async def _flaky_node(self, value: int, failures: int) -> Any:
        return await self._flaky(value, failures)

    async def _doomed_node(self, value: int) -> Any:
        return await self._doomed(value)

    async def _child_node(self, tree: Tree) -> Any:
        return await self._nested(tree)

    async def _spawn_node(self, spawned: Tree, first: Tree) -> Any:
        handle = await self._nested.start(spawned)
        return [await self.safely(first), await handle.result()]

    async def _broken_node(self, value: int) -> Any:
        return await self._broken(value)

    async def _sleep_node(self, seconds: float) -> Any:
        await sleep(seconds)
        return f"slept {seconds}"

    async def _sleeps_node(self, durations: list[float]) -> Any:
        await asyncio.gather(*(asyncio.sleep(seconds) for seconds in durations))
        return len(durations)

    async def _context_node(self, value: int) -> Any:
        # Not a sum of what is there: its order among tasks would show.
        set_context(**{f"k{value}": value})
        return current().context[f"k{value}"]

    async def _seq_node(self, parts: tuple[Tree, ...]) -> Any:
        return [await self.run(part) for part in parts]

    async def _gather_node(self, parts: tuple[Tree, ...]) -> Any:
        results = await asyncio.gather(*map(self.run, parts), return_exceptions=True)
        return [_name(r) if isinstance(r, BaseException) else r for r in results]

    async def _group_node(self, parts: tuple[Tree, ...]) -> Any:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.safely(part)) for part in parts]
        return [task.result() for task in tasks]

    async def _completed_node(self, parts: tuple[Tree, ...]) -> Any:
        coroutines = [self.safely(part) for part in parts]
        return sorted([repr(await next_) for next_ in asyncio.as_completed(coroutines)])

    async def _try_node(self, tried: Tree, fallback: Tree) -> Any:
        try:
            return await self.run(tried)
        except Exception as error:
            return [_name(error), await self.safely(fallback)]

    async def _finally_node(self, tried: Tree, last: Tree) -> Any:
        try:
            return await self.run(tried)
        finally:
            await self.safely(last)

    async def _queue_node(self, parts: tuple[Tree, ...]) -> Any:
        queue: asyncio.Queue[Any] = asyncio.Queue(1)

        async def produce() -> None:
            for part in parts:
                await queue.put(await self.safely(part))

        producer = asyncio.create_task(produce())
        got = [await queue.get() for _ in parts]
        await producer
        return got

    async def _event_node(self, first: Tree, then: Tree) -> Any:
        event = asyncio.Event()

        async def second() -> Any:
            await event.wait()
            return await self.safely(then)

        waiting = asyncio.create_task(second())
        value = await self.safely(first)
        event.set()
        return [value, await waiting]

    async def _lock_node(self, parts: tuple[Tree, ...]) -> Any:
        lock = asyncio.Lock()

        async def locked(part: Tree) -> Any:
            async with lock:
                return await self.safely(part)

        return await asyncio.gather(*map(locked, parts))

    async def _semaphore_node(self, parts: tuple[Tree, ...]) -> Any:
        semaphore = asyncio.Semaphore(2)
        order: list[int] = []

        async def bounded(number: int, part: Tree) -> Any:
            async with semaphore:
                value = await self.safely(part)
                order.append(number)
                return value

        return [await asyncio.gather(*(bounded(n, p) for n, p in enumerate(parts))), order]

    async def _late_node(self, started: Tree, first: Tree) -> Any:
        task = asyncio.create_task(self.safely(started))
        value = await self.safely(first)
        return [value, await task]

    async def _shield_node(self, part: Tree) -> Any:
        return await asyncio.shield(self.safely(part))

    async def _race_node(self, parts: tuple[Tree, ...]) -> Any:
        tasks = [asyncio.create_task(self.safely(part)) for part in parts]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in pending:
                task.cancel()
        for task in tasks:
            if task in pending:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        return [n for n, task in enumerate(tasks) if task in done]

    async def _cancel_node(self, victim: Tree, first: Tree) -> Any:
        task = asyncio.create_task(self.safely(victim))
        value = await self.safely(first)
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
        return [value, _name(results[0]) if isinstance(results[0], BaseException) else results[0]]

    async def _timeout_node(self, seconds: float, part: Tree) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await self.safely(part)
        except TimeoutError:
            return "timeout"

    async def _wait_for_node(self, seconds: float, part: Tree) -> Any:
        try:
            return await asyncio.wait_for(self.safely(part), seconds)
        except TimeoutError:
            return "timeout"

    async def _mailbox_node(self, channel: str, seconds: float) -> Any:
        try:
            return await receive(channel, type=int, timeout=seconds)
        except TimeoutError:
            return "nothing"


def _name(error: BaseException) -> str:
    return type(error).__name__

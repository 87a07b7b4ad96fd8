"""What only the memory store can do: die on command, and tell of commits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamline.model import Commit, CommitResult
from streamline.store.memory import MemoryStore
from streamline.store.memory_data import MemoryData
from tests.conformance.samples import commit_of, held_run, load, new_claim, new_run


async def is_stuck(operation: asyncio.Future[Any]) -> bool:
    done, _ = await asyncio.wait([operation], timeout=0.01)
    operation.cancel()
    return not done


async def test_a_severed_store_neither_answers_nor_changes_anything() -> None:
    data = MemoryData()
    dead, alive = MemoryStore(data=data), MemoryStore(data=data)
    run = held_run(dead)
    await dead.create_run(run)
    dead.sever()
    for verb in (
        dead.create_run(new_run(dead, "new")),
        dead.commit(commit_of(run)),
        dead.release("r", 1),
        dead.load_run("r"),
        dead.claim_due(new_claim(), ["wf"], 1),
    ):
        assert await is_stuck(asyncio.ensure_future(verb))
    assert dead.renew("w1", {"r": 1}, 600.0).lost == {"r"}
    assert await load(alive) == run
    assert await alive.load_run("new") is None


async def test_a_store_severed_by_its_commit_has_committed_but_never_answers() -> None:
    data = MemoryData()
    dying, alive = MemoryStore(data=data), MemoryStore(data=data)
    run = held_run(dying)
    await dying.create_run(run)
    dying.on_commit = lambda commit: dying.sever()
    assert await is_stuck(asyncio.ensure_future(dying.commit(commit_of(run))))
    assert (await load(alive)).rev == 1


async def test_on_commit_sees_what_landed_and_may_raise() -> None:
    store = MemoryStore()
    run = held_run(store)
    await store.create_run(run)
    seen: list[Commit] = []
    store.on_commit = seen.append
    commit = commit_of(run)
    assert await store.commit(commit) is CommitResult.LANDED
    assert await store.commit(commit_of(held_run(store, "x"))) is CommitResult.LOST
    assert seen == [commit]

    def crash(commit: Commit) -> None:
        raise RuntimeError("crashed")

    store.on_commit = crash
    with pytest.raises(RuntimeError, match="crashed"):
        await store.commit(commit_of(await load(store)))
    assert (await load(store)).rev == 2


async def test_verbs_do_not_suspend() -> None:
    store = MemoryStore()
    run = held_run(store)
    for verb in (store.create_run(run), store.commit(commit_of(run)), store.load_run("r")):
        with pytest.raises(StopIteration):
            verb.send(None)

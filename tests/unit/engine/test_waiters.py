"""Whoever waits for a run learns of its end, also when the worker that was to tell loses it."""

from __future__ import annotations

import asyncio

from streamline.model import Run, Status
from streamline.store.memory import MemoryStore
from streamline.waiters import Waiters
from tests.conformance.samples import commit_of, held_run


async def ended_run(store: MemoryStore, run_id: str) -> Run:
    run = held_run(store, run_id)
    await store.create_run(run)
    await store.commit(commit_of(run, Status.DONE, ended_at=store.clock.now()))
    return run


async def test_a_run_that_was_to_be_told_is_polled_for_after_a_rest() -> None:
    store = MemoryStore()
    waiters = Waiters(store, watched=lambda: False, told=lambda run_id: run_id == "second")
    await ended_run(store, "first")
    assert (await waiters.ended("first", 5)).status is Status.DONE
    await asyncio.sleep(0.05)  # nobody is waited for: the waiters rest
    await ended_run(store, "second")
    assert (await waiters.ended("second", 5)).status is Status.DONE
    waiters.close()

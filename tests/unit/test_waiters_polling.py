"""`Waiters`: a thousand who wait cost one query now and then (H3, behaviour 30)."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import pytest

from streamline import InvalidState, ServerUnavailable, Status
from streamline.model import Input, Run
from streamline.waiters import Waiters

AT = datetime(2030, 1, 1, tzinfo=UTC)


def ended(run_id, status=Status.DONE):
    return Run(
        id=run_id, workflow="w", version="1", code="w", status=status, input=Input(),
        python="3.11", created_at=AT, updated_at=AT,
    )  # fmt: skip


class Store:
    """What waiters need of a store."""

    def __init__(self):
        self.ended: set[str] = set()
        self.looks: list[list[str]] = []
        self.error: Exception | None = None

    async def load_ended(self, run_ids):
        self.looks.append(list(run_ids))
        await asyncio.sleep(0)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [ended(run_id) for run_id in run_ids if run_id in self.ended]


@pytest.fixture
async def store():
    return Store()


@pytest.fixture
async def waiters(store):
    waiters = Waiters(store, watched=lambda: True, polls=False)
    yield waiters
    waiters.close()


async def waiting(waiters, *run_ids, timeout=5):
    tasks = [asyncio.ensure_future(waiters.ended(run_id, timeout)) for run_id in run_ids]
    for _ in range(10):
        await asyncio.sleep(0)
    return tasks


async def test_a_run_that_had_ended_already_is_found(waiters, store):
    store.ended.add("a")
    assert (await waiters.ended("a", 5)).id == "a"
    assert waiters.count == 0


async def test_whoever_waits_is_told(waiters):
    tasks = await waiting(waiters, "a", "a", "b")
    waiters.tell(ended("a"))
    assert [run.id for run in await asyncio.gather(*tasks[:2])] == ["a", "a"]
    assert waiters.count == 1
    waiters.tell(ended("b", Status.FAILED))
    assert (await tasks[2]).status is Status.FAILED


async def test_a_notice_makes_it_look_for_that_run_only(waiters, store):
    tasks = await waiting(waiters, "a", "b", "c")
    store.looks.clear()
    store.ended.add("b")
    waiters.suspect("b")
    waiters.suspect("nobody waits for me")
    assert (await tasks[1]).id == "b"
    assert store.looks == [["b"]]
    for task in tasks:
        task.cancel()


async def test_a_thousand_waiters_are_one_look(waiters, store):
    ids = [f"r{n}" for n in range(1000)]
    tasks = await waiting(waiters, *ids)
    store.looks.clear()
    store.ended.update(ids)
    for run_id in ids:
        waiters.suspect(run_id)
    assert len(await asyncio.gather(*tasks)) == 1000
    assert len(store.looks) <= 2


async def test_a_timeout_forgets_only_the_one_who_timed_out(waiters):
    patient, hasty = await waiting(waiters, "a"), waiters.ended("a", 0.001)
    with pytest.raises(TimeoutError):
        await hasty
    assert waiters.count == 1
    waiters.tell(ended("a"))
    assert (await patient[0]).id == "a"


@pytest.mark.parametrize("error", [ServerUnavailable("away"), RuntimeError("a bug")])
async def test_an_outage_is_survived(store, error, caplog):
    waiters = Waiters(store, watched=lambda: False)
    with caplog.at_level(logging.CRITICAL):
        store.error = error
        (task,) = await waiting(waiters, "a")
        store.ended.add("a")
        assert (await task).id == "a"
    waiters.close()


async def test_without_notices_it_polls_less_and_less(store):
    waiters = Waiters(store, watched=lambda: False)
    (task,) = await waiting(waiters, "a")
    await asyncio.sleep(0.2)
    assert 2 <= len(store.looks) <= 5
    task.cancel()
    waiters.close()


async def test_close_tells_those_who_still_wait(waiters):
    tasks = await waiting(waiters, "a", "b")
    waiters.close()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, InvalidState)
        assert "stopped" in str(result)

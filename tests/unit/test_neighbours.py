"""Workers of this host that die: what they held is due at once, whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from streamline.errors import ServerUnavailable
from streamline.store.memory import MemoryStore
from streamline.worker import neighbours
from streamline.worker.identity import WorkerId, _start_time
from streamline.worker.neighbours import Neighbours
from tests.conformance.samples import held_run


class Asked(MemoryStore):
    """Counts the questions, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.failures = 0

    async def claim_holders(self, beginning: str, *, besides: str) -> list[str]:
        self.asked += 1
        if self.failures:
            self.failures -= 1
            raise ServerUnavailable("away")
        return await super().claim_holders(beginning, besides=besides)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def neighbour(process: subprocess.Popen[bytes]) -> str:
    started = _start_time(process.pid)
    assert started is not None
    return str(msgspec.structs.replace(WorkerId.new(), pid=process.pid, started=started))


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ASK", 0.05)
    monkeypatch.setattr(neighbours, "GLANCE", 0.005)


@pytest.fixture
async def store() -> Asked:
    return Asked()


@pytest.fixture
async def due(store: Asked, quickly: None) -> AsyncIterator[asyncio.Event]:
    """Set once runs are said to be due."""
    due = asyncio.Event()
    watching = asyncio.create_task(Neighbours(store, "me", due.set).watch())
    yield due
    watching.cancel()


async def asked(store: Asked, times: int) -> None:
    while store.asked < times:  # noqa: ASYNC110 - the store has no event for it
        await asyncio.sleep(0.001)


async def test_what_a_dead_neighbour_held_is_due(
    store: Asked, due: asyncio.Event, neighbour: str, process: subprocess.Popen[bytes]
) -> None:
    for run_id, worker in {"theirs": neighbour, "mine": "me", "far": "h/b/n/1/1/1"}.items():
        await store.create_run(held_run(store, run_id, worker=worker))
    await asked(store, store.asked + 2)
    assert not due.is_set(), "it lives"
    process.kill()
    await asyncio.wait_for(due.wait(), 5)
    assert await store.expire_claims(neighbour) == 0, "all of it is due already"
    assert await store.expire_claims("me") == 1
    assert await store.expire_claims("h/b/n/1/1/1") == 1


async def test_an_outage_does_not_end_it(
    store: Asked, due: asyncio.Event, neighbour: str, process: subprocess.Popen[bytes]
) -> None:
    store.failures = 3
    await asked(store, store.asked + 5)
    await store.create_run(held_run(store, "r", worker=neighbour))
    process.kill()
    await asyncio.wait_for(due.wait(), 5)

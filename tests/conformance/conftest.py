"""Every test here runs on every store."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from streamline.store.base import RunStore
from tests.conformance.worlds import MemoryWorld, MongoWorld, SealedWorld, World


@pytest.fixture(
    params=[
        "memory",
        "sealed",
        pytest.param("replica", marks=pytest.mark.mongo),
        pytest.param("standalone", marks=pytest.mark.mongo),
    ]
)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world: World
    if request.param == "memory":
        world = MemoryWorld()
    elif request.param == "sealed":
        world = SealedWorld()
    else:
        uri = request.getfixturevalue(f"mongod_{request.param}")
        world = MongoWorld(uri, replica_set=request.param == "replica")
    yield world
    await world.close()


@pytest.fixture
async def store(world: World) -> RunStore:
    return await world.store()

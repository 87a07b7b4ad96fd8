"""The server is killed under load, and comes back or is replaced."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.acceptance.checker import check_everything, check_messages, gather_evidence
from tests.acceptance.harness import Load, Site
from tests.servers import Mongod, ReplicaSet

pytestmark = [pytest.mark.mongo, pytest.mark.kill, pytest.mark.timeout(300)]

SIZE = 40


async def test_the_server_killed_and_restarted_under_load(
    tmp_path: Path, rng: random.Random
) -> None:
    mongod = Mongod()
    await asyncio.to_thread(mongod.start)
    try:
        async with Site(mongod.uri, tmp_path, database="outage") as site:
            async with site.client() as engine:
                load = Load(site, engine, rng, size=SIZE)
                async with load.running():
                    await asyncio.gather(site.work(), site.work())
                    for _ in range(4):
                        await load.reach(load.done + 10)
                        await asyncio.sleep(rng.uniform(0.0, 0.5))
                        await asyncio.to_thread(mongod.kill)
                        await asyncio.sleep(rng.uniform(0.1, 1.5))
                        await asyncio.to_thread(mongod.restart)
            await _check(site, load)
    finally:
        await asyncio.to_thread(mongod.stop)


async def test_a_primary_killed_under_load_is_replaced(tmp_path: Path, rng: random.Random) -> None:
    replica_set = ReplicaSet(3)
    await asyncio.to_thread(replica_set.start)
    try:
        async with Site(replica_set.uri, tmp_path, database="failover") as site:
            async with site.client() as engine:
                load = Load(site, engine, rng, size=SIZE // 2)
                async with load.running():
                    await asyncio.gather(site.work(), site.work())
                    for _ in range(2):
                        await load.reach(load.done + 10)
                        await asyncio.sleep(rng.uniform(0.0, 0.5))
                        primary = await asyncio.to_thread(replica_set.primary)
                        await asyncio.to_thread(primary.kill)
                        await load.reach(load.done + 10)  # the other two do
                        await asyncio.to_thread(primary.restart)
            await _check(site, load)
    finally:
        await asyncio.to_thread(replica_set.stop)


async def _check(site: Site, load: Load) -> None:
    evidence = await gather_evidence(site.database)
    check_everything(evidence)
    check_messages(evidence, load.sent)
    assert all(run["status"] == "done" for run in evidence.runs.values())

"""Replays agree between processes: whatever the hash seed, whatever lies where in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

BODIES = """
import asyncio, json, random, sys
sys.path[:0] = [{here!r}, {root!r}]
import os
churn = [object() if n % 3 else bytearray(n % 500) for n in range(random.randrange(50_000))]
from replay_player import Player, step, workflow

@step
def charge(value): return value

@step
def cleanup(value): return value

@step
def fail(): raise ValueError("x")

async def branch(number):
    try:
        await charge(number)
        return number
    finally:
        await cleanup(number)

@workflow
async def flow():
    seen = []
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(15):
                group.create_task(branch(number))
            await fail()
    except* ValueError:
        pass
    racers = {{asyncio.create_task(branch(n), name=str(n)) for n in range(15)}}
    done, pending = await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        seen.append(task.get_name())
        task.cancel()
    await asyncio.wait(pending)
    gatherings = [asyncio.gather(branch(n), branch(n)) for n in range(10)]
    _, pending = await asyncio.wait(gatherings, return_when=asyncio.FIRST_COMPLETED)
    for gathering in pending:
        gathering.cancel()
    for done in asyncio.as_completed([branch(n) for n in range(15)]):
        seen.append(await done)
    tasks = [asyncio.create_task(branch(n)) for n in range(15)]
    await asyncio.sleep(1)
    for task in asyncio.all_tasks() - {{asyncio.current_task()}}:
        seen.append(task.get_name())
        task.cancel()
    await asyncio.wait(tasks)
    return seen

others = [Player(flow, run_id=str(n), max_entries=random.randrange(30)).play()
          for n in range(random.randrange(5))]
del churn[::2]
recording = Player(flow, seed=5).play()
print(json.dumps([[t.issued for t in recording.turns], [t.withdrawn for t in recording.turns],
                  recording.turns[-1].outcome]))
os._exit(0) if not sys.stdout.flush() else None
"""


def _run(seed: int) -> Any:
    script = BODIES.format(here=str(HERE), root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def first() -> Any:
    return _run(0)


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_another_process_asks_for_the_same_in_the_same_order(seed: int, first: Any) -> None:
    assert first[-1].startswith("returned")
    assert _run(seed) == first

"""The checker can fail: faults put into the engine are reported, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.chaos.scenes import Stage, late_message, lost_replies, play, takeover

pytestmark = [pytest.mark.mongo, pytest.mark.kill]


@pytest.mark.parametrize(
    ("scene", "sound", "mutated", "report"),
    [
        pytest.param(takeover, "", "fence", "writers: taken", id="fence"),
        pytest.param(late_message, "slow", "slow+inbox", "stuck: 1 runs", id="inbox_seq"),
        pytest.param(lost_replies, "deaf", "deaf+rev", "answered twice", id="rev"),
    ],
)
async def test_a_fault_in_the_store_is_reported(
    scene: Callable[[Stage], Awaitable[None]],
    sound: str,
    mutated: str,
    report: str,
    mongod_replica: str,
    tmp_path: Path,
) -> None:
    held, broken = await asyncio.gather(
        play(scene, mongod_replica, tmp_path / "sound", sound),
        play(scene, mongod_replica, tmp_path / "mutated", mutated),
    )
    assert held == []
    assert any(report in wrong for wrong in broken), broken

"""A short storm with a fixed seed; `make chaos` has longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import draw_schedule
from tests.chaos.storm import storm

pytestmark = [pytest.mark.mongo, pytest.mark.kill]

SEED = 7
SECONDS = 12.0


@pytest.mark.timeout(180)
# Connections that are cut in the middle are closed by the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_every_promise_holds_in_a_short_storm(tmp_path: Path) -> None:
    verdict = await storm(SEED, SECONDS, "single", tmp_path)
    assert not verdict.wrong, verdict.text


def test_a_seed_says_which_faults_come_when() -> None:
    schedule = draw_schedule(SEED, 60, "set")
    assert schedule == draw_schedule(SEED, 60, "set")
    assert schedule != draw_schedule(SEED + 1, 60, "set")
    assert draw_schedule(SEED, 30, "set") == [fault for fault in schedule if fault.at < 30]

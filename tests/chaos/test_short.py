"""A short storm with a fixed seed; `make chaos` has longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.storm import storm

pytestmark = [pytest.mark.mongo, pytest.mark.kill]

SEED = 7
SECONDS = 15.0


@pytest.mark.timeout(180)
async def test_every_promise_holds_in_a_short_storm(tmp_path: Path) -> None:
    verdict = await storm(SEED, SECONDS, "single", tmp_path)
    assert not verdict.wrong, verdict.text

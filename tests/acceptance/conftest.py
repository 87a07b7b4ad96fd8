"""Fixtures of the tests that kill processes."""

from __future__ import annotations

import os
import random
import re
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Site


@pytest.fixture
def rng() -> random.Random:
    """A generator whose seed is shown when the test fails; STREAMLINE_SEED sets it."""
    seed = int(os.environ.get("STREAMLINE_SEED") or random.randrange(1_000_000))
    sys.stdout.write(f"STREAMLINE_SEED={seed}\n")
    return random.Random(seed)


@pytest.fixture
async def site(
    mongod_replica: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Site]:
    """A fresh database on the session's replica set, and processes that work on it."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    async with Site(mongod_replica, tmp_path, database=f"{name}_{uuid.uuid4().hex[:8]}") as site:
        yield site

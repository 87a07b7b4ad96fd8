"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from engine_support import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Give a started world with a worker, a registry of its own and skipped time."""
    async with World() as world:
        yield world

"""Every body that a test played is dropped at its end, as a worker drops what it parks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import replay_player


@pytest.fixture(autouse=True)
def _evicted() -> Iterator[None]:
    yield
    while replay_player.played:
        replay_player.played.pop().evict()

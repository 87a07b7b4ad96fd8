"""`Sizes`: how much is measured. Three sets of them, and each can be given by itself."""

from __future__ import annotations

import msgspec


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured; the defaults take about five minutes."""

    turns: int = 5
    """How often the engine and the raw driver take turns."""
    latency_runs: int = 100
    """10-step runs, one by one."""
    runs: int = 400
    """5-step runs side by side, in one turn; three times what is in flight if that is more."""
    in_flight: tuple[int, ...] = (50, 500)
    """How many 5-step runs are side by side."""
    starts: int = 100
    """Runs that begin in another process."""
    at_once: int = 200
    """Sleeps of 1 s that begin together."""
    sleeping: int = 2_000
    """Runs that sleep while others wake."""
    wakes: int = 400
    """Runs that wake meanwhile, 50 a second."""
    messages: int = 200
    """Messages, one by one."""
    long: int = 3_000
    """Steps of the long run."""
    stored_sleeping: int = 10_000
    """Sleeping runs in a filled collection."""
    stored_waiting: int = 50_000
    """Runs in a filled collection that wait for a message."""
    filled_turns: int = 25
    """How often the filled and an empty collection take turns."""
    takeovers: int = 5
    """Workers that are killed."""
    lease: float = 3.0
    """Seconds that the claims of killed workers last."""
    parked: int = 2_000
    """Runs parked in memory."""
    fleet_runs: int = 500
    """5-step runs for one worker, and for four."""


PRESETS = {
    "quick": Sizes(
        turns=2,
        latency_runs=15,
        runs=100,
        starts=15,
        at_once=50,
        sleeping=200,
        wakes=50,
        messages=30,
        long=1_000,
        stored_sleeping=1_000,
        stored_waiting=5_000,
        filled_turns=5,
        takeovers=2,
        parked=500,
        fleet_runs=150,
    ),
    "default": Sizes(),
    "full": Sizes(
        turns=7,
        latency_runs=200,
        runs=500,
        starts=200,
        sleeping=10_000,
        wakes=1_000,
        messages=400,
        long=10_000,
        stored_sleeping=100_000,
        stored_waiting=1_000_000,
        filled_turns=40,
        takeovers=8,
        parked=5_000,
        fleet_runs=1_500,
    ),
}

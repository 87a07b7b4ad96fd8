"""`Health`: how an engine is doing, for probes and dashboards."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What `engine.health()` returns."""

    last_poll: datetime | None
    """When the scheduler last reached the server."""
    success_rate: float
    """The share of its polls that succeeded, 0 to 1."""
    circuit_open: bool
    """Whether it holds back because the server is away."""
    lag: timedelta
    """How long the longest due run has been waiting for a worker, as far as is known."""
    claimed: int
    """How many runs are driven here."""
    cached: int
    """How many parked runs are in memory."""
    watched: bool
    """Whether the server tells of changes; otherwise they are polled for."""

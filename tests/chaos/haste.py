"""Hours made seconds: a storm is short, and deleting what nobody refers to is part of it."""

from __future__ import annotations

from datetime import timedelta

from streamline.store import base, mongo, payloads, sweep, updates
from streamline.worker import sweeper

REFER_WITHIN = timedelta(seconds=10)
ORPHANED_AFTER = timedelta(seconds=30)
SWEEP_EVERY = 5.0


def hasten() -> None:
    """Let this process sweep payloads soon, and refuse to refer to what may be swept by then."""
    for module in (base, mongo, updates):
        module.REFER_WITHIN = REFER_WITHIN  # type: ignore[attr-defined]
    for module in (base, payloads, sweep):
        module.ORPHANED_AFTER = ORPHANED_AFTER  # type: ignore[attr-defined]
    sweeper.EVERY = SWEEP_EVERY

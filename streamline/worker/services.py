"""What a worker hands to each of its drivers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from datetime import timedelta

import msgspec

from streamline.clock import Clock
from streamline.codec import Limits
from streamline.definitions import Registry, Step
from streamline.events import EventBus
from streamline.store import RunStore


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """Shared by all drivers of one worker."""

    store: RunStore
    clock: Clock
    events: EventBus
    registry: Registry
    limits: Limits
    hold: timedelta
    """A run whose next timer or retry is nearer than this isn't parked but kept."""
    ahead: timedelta
    """How long before its timer a parked run is claimed; less than `hold`, or it parked again."""
    max_recoveries: int
    """How often a claim may go stale without progress before the run is failed."""
    journal_warning: int | None = None
    """From how many entries on a journal is warned of; None for never."""
    threads: Executor | None = None
    """Where steps that are plain functions run; the worker makes it."""
    replace_step: Callable[[Step[..., object]], Step[..., object]] | None = None
    """Lets tests put another step in the place of one."""

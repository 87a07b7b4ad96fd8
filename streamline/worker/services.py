"""What a worker hands to each of its drivers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from datetime import timedelta
from typing import Any

import msgspec

from streamline.clock import Clock
from streamline.codec import Limits
from streamline.definitions import Registry, Step, Workflow
from streamline.events import EventBus
from streamline.handles import StartOptions
from streamline.model import Input, Parent, Run
from streamline.store import RunStore
from streamline.worker.courier import Courier

StartChild = Callable[[Workflow[..., Any], Input, StartOptions, Parent], Awaitable[Run]]


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
    start_child: StartChild
    """Makes a child durable, once for all calls of one parent and slot; returns the run that the
    parent is to hear of. Raises what `Launcher.launch` does."""
    courier: Courier | None = None
    """Tells other runs what they are to know; the worker makes it."""
    journal_warning: int | None = None
    """From how many entries on a journal is warned of; None for never."""
    threads: Executor | None = None
    """Where steps that are plain functions run; the worker makes it."""
    replace_step: Callable[[Step[..., object]], Step[..., object]] | None = None
    """Lets tests put another step in the place of one."""
    replace_workflow: Callable[[Workflow[..., Any]], Workflow[..., Any]] | None = None
    """Lets tests put another workflow in the place of one."""

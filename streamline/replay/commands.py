"""What a body asks for. A command has its id from the moment it is called."""

from __future__ import annotations

import asyncio
import copy
from abc import abstractmethod
from asyncio import futures
from collections import deque
from datetime import UTC, datetime
from typing import Any

import msgspec

from streamline.clock import from_seconds
from streamline.definitions import Step, Workflow
from streamline.handles import StartOptions
from streamline.model import EntryKind, Input, Slot


class Command(msgspec.Struct, kw_only=True):
    """Base of all commands: the id, and what is resolved when its entry comes."""

    id: str

    @property
    @abstractmethod
    def kind(self) -> EntryKind:
        """Which kind of entry resolves it next."""


class StepCommand(Command, kw_only=True):
    """Run a step. The arguments are the body's own objects, detached from later changes."""

    step: Step[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    future: asyncio.Future[Any]

    @property
    def kind(self) -> EntryKind:
        return EntryKind.STEP


class TimerCommand(Command, kw_only=True):
    """Fire at an instant."""

    due: datetime
    handle: asyncio.TimerHandle

    @property
    def kind(self) -> EntryKind:
        return EntryKind.TIMER


class SlotCommand(Command, kw_only=True):
    """Open a slot for a message."""

    slot: Slot
    type: Any
    future: asyncio.Future[Any]

    @property
    def kind(self) -> EntryKind:
        return EntryKind.MESSAGE


class ChildCommand(Command, kw_only=True):
    """Start a run and, once it is started, hear of its end.

    Two entries answer it: `child` says that the run is there, `outcome` how it ended.
    """

    slot: Slot
    flow: Workflow[..., Any]
    given: Input | None
    """The encoded arguments; None where the start is recorded, and they aren't needed."""
    options: StartOptions
    future: asyncio.Future[None]
    """Resolved by the start."""
    started: bool = False
    stamp: str = ""
    """Which of the runs that had the child's id, once it is started; empty if nobody knows."""
    waiters: list[asyncio.Future[Any]] = []
    """Resolved by the end, in order."""
    outcome: tuple[Any, Exception | None] | None = None

    @property
    def kind(self) -> EntryKind:
        return EntryKind.OUTCOME if self.started else EntryKind.CHILD

    @property
    def run_id(self) -> str:
        """The id of the child's run."""
        return self.slot.name


FOREVER = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
"""When a timer is due that asyncio would never fire; nothing later can be stored."""


def timer_due(handle: asyncio.TimerHandle) -> datetime:
    """Return when a timer is due: upwards to the millisecond, for it must never fire early."""
    return from_seconds(min(handle.when(), FOREVER) + 0.000999)


def is_sleep(handle: asyncio.TimerHandle) -> bool:
    """Whether it was `asyncio.sleep` that set a timer."""
    callback = handle._callback  # type: ignore[attr-defined]
    return callback is futures._set_result_unless_cancelled  # type: ignore[attr-defined]


_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, datetime})


# Of dataclasses, pydantic models and attrs classes.
_MARKS = ("__dataclass_fields__", "model_fields_set", "__attrs_attrs__")


def detach(value: Any) -> Any:
    """Return an argument that a step may change without the body seeing it.

    A replay doesn't run the step, so a change would be seen on the first pass only. Data is copied;
    what can't be copied, or is no data (a client, a function), is passed as it is.
    """
    if type(value) in _ATOMS:
        return value
    is_data = isinstance(value, (list, dict, set, tuple, deque, bytearray, msgspec.Struct))
    if not (is_data or any(hasattr(type(value), mark) for mark in _MARKS)):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:
        return value

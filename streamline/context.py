"""What user code calls inside a run, over the runtime that the engine puts there.

Outside a run most functions raise `InvalidState`; see `runtime.py` for what is there inside.
"""

from __future__ import annotations

import asyncio
import logging
import random as _random
import uuid as _uuid
from collections.abc import AsyncIterator, Mapping, MutableMapping
from datetime import UTC, datetime
from threading import Event
from typing import Any, NoReturn, Protocol, TypeVar, overload

from streamline.durations import Duration, to_seconds
from streamline.ids import check_name
from streamline.model import SlotKind
from streamline.runtime import (
    Runtime,
    StepRuntime,
    body_runtime,
    present_runtime,
    require_body,
    require_runtime,
    require_step,
)

T = TypeVar("T")


class NamedStep(Protocol):
    """A step definition, as far as this layer knows it."""

    name: str


class Current:
    """Facts about the run, and the step, that this code is part of."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._runtime.run.id

    @property
    def workflow(self) -> str:
        """The name of the workflow."""
        return self._runtime.run.workflow

    @property
    def version(self) -> str:
        """The version under which the run, or its present generation, began."""
        return self._runtime.run.version

    @property
    def generation(self) -> int:
        """How often the run has begun: 1, and one more with every `continue_as_new`."""
        return self._runtime.run.generation

    @property
    def meta(self) -> Mapping[str, Any]:
        """The caller's `meta`."""
        return self._runtime.run.meta

    @property
    def input(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the run: positional ones and keyword ones."""
        return self._runtime.workflow_input()

    @property
    def context(self) -> Mapping[str, Any]:
        """The run's own state, as a read-only mapping; change it with `set_context`."""
        return self._runtime.context

    @property
    def replaying(self) -> bool:
        """Whether what happens now happened before. Never true in a step."""
        return self._runtime.replaying

    @property
    def step_id(self) -> str | None:
        """The id of the step, `charge#2` for example; None in the body."""
        return self._runtime.step_id if isinstance(self._runtime, StepRuntime) else None

    @property
    def attempt(self) -> int:
        """The number of this attempt of the step, from 1; 0 in the body."""
        return self._runtime.attempt if isinstance(self._runtime, StepRuntime) else 0

    @property
    def idempotency_key(self) -> str:
        """A key that is the same on every attempt of this step, and no other step's.

        The run's id and the step's, `o-1/charge#2`; from the second generation on (see
        `continue_as_new`) with its number, `o-1/charge#2@2`.
        """
        key = f"{self.run_id}/{require_step('idempotency_key').step_id}"
        # Step ids hold no `/` and no `@`, so no two keys can be alike.
        return key if self.generation == 1 else f"{key}@{self.generation}"

    @property
    def cancelled(self) -> Event:
        """Set once this step is cancelled or its run is lost; for steps in threads."""
        return require_step("cancelled").cancelled

    @property
    def last_heartbeat(self) -> Any:
        """The details of the last heartbeat of an earlier attempt, or None."""
        return require_step("last_heartbeat").last_heartbeat

    def output_of(self, step: NamedStep | str) -> Any:
        """Return the recorded output of a step: by its definition (first call) or its id.

        Raises:
            StepNotFound: The run has no recorded output of that step.
        """
        return self._runtime.output_of(step if isinstance(step, str) else step.name)


def current() -> Current:
    """Return the facts about the run that this code is part of.

    Raises:
        InvalidState: It is not part of a run.
    """
    return Current(require_runtime("current()"))


async def sleep(duration: Duration) -> None:
    """Sleep durably in a body (also for months), plainly elsewhere.

    Args:
        duration: Seconds, a timedelta, or text such as `"1h"`.
    """
    await asyncio.sleep(to_seconds(duration))


async def sleep_until(when: datetime) -> None:
    """Sleep until an instant; a past one doesn't wait.

    Raises:
        ValueError: `when` has no time zone.
    """
    if when.tzinfo is None:
        raise ValueError(f"sleep_until needs an aware datetime, not {when!r}")
    await asyncio.sleep(max(0.0, (when - now()).total_seconds()))


@overload
async def wait(
    reason: str,
    data: Any = None,
    *,
    name: str | None = None,
    type: type[T],
    timeout: Duration | None = None,
) -> T: ...


@overload
async def wait(
    reason: str,
    data: Any = None,
    *,
    name: str | None = None,
    type: Any = Any,
    timeout: Duration | None = None,
) -> Any: ...


async def wait(
    reason: str,
    data: Any = None,
    *,
    name: str | None = None,
    type: Any = Any,
    timeout: Duration | None = None,
) -> Any:
    """Park the run until somebody resumes it; returns the payload.

    Args:
        reason: What is asked, for people; shows in the run's `awaiting`.
        data: What they need to decide; stored beside the reason.
        name: To tell several open waits apart: `handle.resume(payload, name=...)`.
        type: What the payload must be; checked at the sender.
        timeout: Durable; then a TimeoutError is raised.
    """
    seconds = None if timeout is None else to_seconds(timeout)
    if name is not None:
        check_name(name, what="a wait")
    slot = require_body("wait()").open_slot(
        SlotKind.WAIT, name, type=type, reason=reason, data=data, timeout=seconds
    )
    async with asyncio.timeout(seconds):
        return await slot


@overload
async def receive(channel: str, *, type: type[T], timeout: Duration | None = None) -> T: ...


@overload
async def receive(channel: str, *, type: Any = Any, timeout: Duration | None = None) -> Any: ...


async def receive(channel: str, *, type: Any = Any, timeout: Duration | None = None) -> Any:
    """Take the oldest message of a channel, or park until one comes.

    Args:
        channel: The name that `handle.send` names.
        type: What the payload must be.
        timeout: Durable; then a TimeoutError is raised.

    Raises:
        ValidationError: The message is not of this type. It was taken.
    """
    seconds = None if timeout is None else to_seconds(timeout)
    check_name(channel, what="a channel")
    slot = require_body("receive()").open_slot(
        SlotKind.RECEIVE, channel, type=type, timeout=seconds
    )
    async with asyncio.timeout(seconds):
        return await slot


async def channel(name: str, *, type: Any = Any) -> AsyncIterator[Any]:
    """Iterate over a channel's messages, for ever: `async for message in channel("orders")`."""
    while True:
        yield await receive(name, type=type)


def now() -> datetime:
    """Return the time, aware UTC: in a body that of the entry being applied, the same on replay."""
    body = body_runtime()
    return datetime.now(UTC) if body is None else body.now()


def random() -> float:
    """Return a number in [0, 1): in a body the same on replay, different from run to run."""
    body = body_runtime()
    return _random.random() if body is None else body.rng.random()


def uuid4() -> _uuid.UUID:
    """Return a random UUID: in a body the same on replay, different from run to run."""
    body = body_runtime()
    if body is None:
        return _uuid.uuid4()
    return _uuid.UUID(int=body.rng.getrandbits(128), version=4)


def patched(patch_id: str) -> bool:
    """Whether this run takes the new side of a change in the workflow's code.

    True for a run that gets here for the first time under code that has the call, False for one
    that passed here before; the answer is recorded, and the same ever after.
    """
    return require_body("patched()").patched(check_name(patch_id, what="a patch"))


def deprecate_patch(patch_id: str) -> None:
    """Stand in for `patched()` once no run can take the old side; then delete it too.

    Runs that recorded the patch go on, and those that didn't are not asked any more.
    """
    require_body("deprecate_patch()")
    check_name(patch_id, what="a patch")


def continue_as_new(*args: Any, **kwargs: Any) -> NoReturn:
    """End this body and let the run begin anew with these arguments and an empty journal.

    For runs that never end: it stays the same run, with its id, context and mailbox, in its next
    generation. The newest registered code takes it. Steps, timers and waits that are open are
    cancelled as when the body returns. What this raises is no `Exception`: let it pass.

    Raises:
        ValidationError: The arguments don't fit the workflow's signature, or can't be stored.
        PayloadTooLarge: They are larger than may be stored.
        InvalidState: This is not a workflow body.
    """
    require_body("continue_as_new()").continue_as_new(args, kwargs)


def set_context(**values: Any) -> None:
    """Set entries of the run's own state, `context` in its document.

    A body's changes are stored with its next commit, a step's with its result.

    Raises:
        ValidationError: A value can't be stored.
    """
    require_runtime("set_context()").set_context(values)


def heartbeat(details: Any = None) -> None:
    """Tell that this step is alive, and how far it got, for the next attempt to go on from there.

    Args:
        details: Any value that can be stored; `current().last_heartbeat` of a later attempt.
    """
    require_step("heartbeat()").heartbeat(details)


class _RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that knows the run, and is silent while a body is replayed."""

    def isEnabledFor(self, level: int) -> bool:
        runtime = present_runtime()
        return not (runtime is not None and runtime.replaying) and super().isEnabledFor(level)

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        runtime = present_runtime()
        if runtime is not None:
            extra = {"run_id": runtime.run.id, "workflow": runtime.run.workflow}
            if isinstance(runtime, StepRuntime):
                extra["step"] = runtime.step_id
            kwargs["extra"] = {**extra, **kwargs.get("extra", {})}
        return msg, kwargs


logger: _RunLogger = _RunLogger(logging.getLogger("streamline.run"), {})
"""A logger for bodies and steps: a line is not repeated on replay; records carry `run_id`."""

"""What user code calls inside a run, over the runtime that the engine puts there.

A workflow body sees a `BodyRuntime` (the replay core), a step a `StepRuntime` (the worker). This
module knows both only as the interfaces below. Outside a run most functions raise `InvalidState`.
"""

from __future__ import annotations

import asyncio
import logging
import random as _random
import uuid as _uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Mapping, MutableMapping
from concurrent.futures import Executor
from contextvars import ContextVar
from datetime import UTC, datetime
from threading import Event
from typing import Any, NoReturn, Protocol, TypeVar, overload

from streamline.durations import Duration, to_seconds
from streamline.errors import InvalidState
from streamline.ids import check_name
from streamline.model import Run, SlotKind

T = TypeVar("T")


class NamedStep(Protocol):
    """A step definition, as far as this layer knows it."""

    name: str


class Runtime(ABC):
    """What every piece of code inside a run can ask."""

    run: Run
    """The run as it was claimed; `current()` says what has changed since."""

    @property
    @abstractmethod
    def replaying(self) -> bool:
        """Whether what happens now happened before, and is only gone through again."""

    @property
    @abstractmethod
    def context(self) -> Mapping[str, Any]:
        """The run's own state."""

    @abstractmethod
    def set_context(self, changes: Mapping[str, Any]) -> None:
        """Change the run's own state; recorded with the next commit."""

    @abstractmethod
    def output_of(self, step_id: str) -> Any:
        """Return the recorded output of a step; raises `StepNotFound`."""

    @abstractmethod
    def workflow_input(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the decoded arguments of the run."""


class BodyRuntime(Runtime):
    """What a workflow body can ask on top."""

    @abstractmethod
    def now(self) -> datetime:
        """Return the time of the entry being applied."""

    @property
    @abstractmethod
    def rng(self) -> _random.Random:
        """The run's own generator: the same numbers on every replay."""

    @abstractmethod
    def call_step(
        self, step: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Give the step its id now, and ask for it when the coroutine is first awaited."""

    @abstractmethod
    def call_child(
        self, flow: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: Any
    ) -> Coroutine[Any, Any, Any]:
        """Give a child its id now; start it, and wait for its result, when awaited."""

    @abstractmethod
    def start_child(
        self, flow: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: Any
    ) -> Coroutine[Any, Any, Any]:
        """Give a child its id now; start it, and return its handle, when awaited."""

    @abstractmethod
    def child_handle(self, run_id: str) -> Any:
        """Return a handle of a run by its id; in a body most of what it offers is refused."""

    @abstractmethod
    def open_slot(
        self,
        kind: SlotKind,
        name: str | None,
        *,
        type: Any,
        reason: str | None = None,
        data: Any = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Give the slot its id now, and open it when the coroutine is first awaited."""

    @abstractmethod
    def patched(self, patch_id: str) -> bool:
        """Whether this run takes the new side of a change."""

    @abstractmethod
    def continue_as_new(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        """Raise what ends the body, so that the run goes on with these arguments."""
        raise NotImplementedError


class StepRuntime(Runtime):
    """What a step can ask on top."""

    threads: Executor | None
    """Where plain functions run; None for the event loop's own pool."""
    step_id: str
    attempt: int
    last_heartbeat: Any

    @property
    @abstractmethod
    def cancelled(self) -> Event:
        """Set once the step is cancelled or its run is lost."""

    @abstractmethod
    def heartbeat(self, details: Any) -> None:
        """Tell that the step is alive, from any thread."""


_runtime: ContextVar[Runtime | None] = ContextVar("streamline_runtime", default=None)


def enter_runtime(runtime: Runtime | None) -> None:
    """Put a runtime in place for the present context (the engine calls this)."""
    _runtime.set(runtime)


def body_runtime() -> BodyRuntime | None:
    """Return the runtime if this is a workflow body."""
    runtime = _runtime.get()
    return runtime if isinstance(runtime, BodyRuntime) else None


def step_threads() -> Executor | None:
    """Return where a plain step runs: in a run the worker's threads, else None."""
    runtime = _runtime.get()
    return runtime.threads if isinstance(runtime, StepRuntime) else None


def in_step() -> bool:
    """Whether this code runs as part of a step."""
    return isinstance(_runtime.get(), StepRuntime)


def _require_runtime(name: str) -> Runtime:
    runtime = _runtime.get()
    if runtime is None:
        raise InvalidState(f"{name} was called outside a run: call it in a @workflow or a @step")
    return runtime


def _require_body(name: str) -> BodyRuntime:
    runtime = _require_runtime(name)
    if not isinstance(runtime, BodyRuntime):
        raise InvalidState(
            f"{name} was called in a step of run {runtime.run.id!r}: call it in the workflow body",
            run_id=runtime.run.id,
        )
    return runtime


def _require_step(name: str) -> StepRuntime:
    runtime = _require_runtime(name)
    if not isinstance(runtime, StepRuntime):
        raise InvalidState(
            f"{name} was called in the body of run {runtime.run.id!r}: call it in a @step",
            run_id=runtime.run.id,
        )
    return runtime


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
        key = f"{self.run_id}/{_require_step('idempotency_key').step_id}"
        # Step ids hold no `/` and no `@`, so no two keys can be alike.
        return key if self.generation == 1 else f"{key}@{self.generation}"

    @property
    def cancelled(self) -> Event:
        """Set once this step is cancelled or its run is lost; for steps in threads."""
        return _require_step("cancelled").cancelled

    @property
    def last_heartbeat(self) -> Any:
        """The details of the last heartbeat of an earlier attempt, or None."""
        return _require_step("last_heartbeat").last_heartbeat

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
    return Current(_require_runtime("current()"))


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
    slot = _require_body("wait()").open_slot(
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
    slot = _require_body("receive()").open_slot(
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
    return _require_body("patched()").patched(check_name(patch_id, what="a patch"))


def deprecate_patch(patch_id: str) -> None:
    """Stand in for `patched()` once no run can take the old side; then delete it too.

    Runs that recorded the patch go on, and those that didn't are not asked any more.
    """
    _require_body("deprecate_patch()")
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
    _require_body("continue_as_new()").continue_as_new(args, kwargs)


def set_context(**values: Any) -> None:
    """Set entries of the run's own state, `context` in its document.

    A body's changes are stored with its next commit, a step's with its result.

    Raises:
        ValidationError: A value can't be stored.
    """
    _require_runtime("set_context()").set_context(values)


def heartbeat(details: Any = None) -> None:
    """Tell that this step is alive, and how far it got, for the next attempt to go on from there.

    Args:
        details: Any value that can be stored; `current().last_heartbeat` of a later attempt.
    """
    _require_step("heartbeat()").heartbeat(details)


class _RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that knows the run, and is silent while a body is replayed."""

    def isEnabledFor(self, level: int) -> bool:
        runtime = _runtime.get()
        return not (runtime is not None and runtime.replaying) and super().isEnabledFor(level)

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        runtime = _runtime.get()
        if runtime is not None:
            extra = {"run_id": runtime.run.id, "workflow": runtime.run.workflow}
            if isinstance(runtime, StepRuntime):
                extra["step"] = runtime.step_id
            kwargs["extra"] = {**extra, **kwargs.get("extra", {})}
        return msg, kwargs


logger: _RunLogger = _RunLogger(logging.getLogger("streamline.run"), {})
"""A logger for bodies and steps: a line is not repeated on replay; records carry `run_id`."""

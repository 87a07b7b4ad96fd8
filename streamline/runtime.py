"""What the engine puts in place for user code inside a run.

A workflow body sees a `BodyRuntime` (the replay core), a step a `StepRuntime` (the worker). The
functions of `context.py` work over these interfaces.
"""

from __future__ import annotations

import random as _random
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping
from concurrent.futures import Executor
from contextvars import ContextVar
from datetime import datetime
from threading import Event
from typing import Any, NoReturn

from streamline.errors import InvalidState
from streamline.model import Run, SlotKind


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


def present_runtime() -> Runtime | None:
    """Return the runtime of this code; None outside a run."""
    return _runtime.get()


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


def require_runtime(name: str) -> Runtime:
    """Return the runtime; raises `InvalidState` outside a run."""
    runtime = _runtime.get()
    if runtime is None:
        raise InvalidState(f"{name} was called outside a run: call it in a @workflow or a @step")
    return runtime


def require_body(name: str) -> BodyRuntime:
    """Return the runtime of a workflow body; raises `InvalidState` elsewhere."""
    runtime = require_runtime(name)
    if not isinstance(runtime, BodyRuntime):
        raise InvalidState(
            f"{name} was called in a step of run {runtime.run.id!r}: call it in the workflow body",
            run_id=runtime.run.id,
        )
    return runtime


def require_step(name: str) -> StepRuntime:
    """Return the runtime of a step; raises `InvalidState` elsewhere."""
    runtime = require_runtime(name)
    if not isinstance(runtime, StepRuntime):
        raise InvalidState(
            f"{name} was called in the body of run {runtime.run.id!r}: call it in a @step",
            run_id=runtime.run.id,
        )
    return runtime

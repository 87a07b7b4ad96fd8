"""`@step` and `@workflow`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from streamline.definitions.registry import Registry, default_registry
from streamline.definitions.signature import Signature
from streamline.definitions.step import Semantics, Step, StepDefaults, StepOptions
from streamline.definitions.workflow import OnFailure, Workflow
from streamline.durations import Duration, to_timedelta
from streamline.errors import ValidationError

P = ParamSpec("P")
R = TypeVar("R")


class StepDecorator(Protocol):
    """What `@step(...)` with keywords returns."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Step[P, R]: ...


class WorkflowDecorator(Protocol):
    """What `@workflow(...)` with keywords returns."""

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...


@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    attempts: int | None = None,
    stop: stop_base | None = None,
    wait: wait_base | None = None,
    retry: retry_base | None = None,
    timeout: Duration | None = None,
    heartbeat_timeout: Duration | None = None,
    semantics: Semantics = "at_least_once",
    registry: Registry | None = None,
) -> StepDecorator: ...


def step(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    attempts: int | None = None,
    stop: stop_base | None = None,
    wait: wait_base | None = None,
    retry: retry_base | None = None,
    timeout: Duration | None = None,
    heartbeat_timeout: Duration | None = None,
    semantics: Semantics = "at_least_once",
    registry: Registry | None = None,
) -> Any:
    """Make a function a step: its result is recorded, and it doesn't run again once it is.

    Args:
        fn: An `async def`, or a plain `def` that then runs in a thread.
        name: Its name in the journal; the qualified name of the function by default.
        attempts: How often it is tried in all; 3 by default, 1 with `at_most_once`.
        stop: A tenacity strategy in the place of `attempts`.
        wait: A tenacity strategy for the time between attempts; by default 1 s doubled each time,
            at most 60 s, with 30 % jitter.
        retry: A tenacity strategy that says which errors or results are tried again.
        timeout: How long one attempt may take.
        heartbeat_timeout: How long an attempt may go without a `heartbeat()`.
        semantics: `"at_most_once"`: an attempt whose process died counts as failed.
        registry: Another registry than the global one.

    Raises:
        ValidationError: A name or a number is not acceptable.
        DefinitionConflict: Another function is a step of that name.
    """
    if attempts is not None and attempts < 1:
        raise ValidationError(f"a step needs at least 1 attempt, not {attempts}")
    options = StepOptions(
        attempts=attempts,
        stop=stop,
        wait=wait,
        retry=retry,
        timeout=_optional(timeout),
        heartbeat_timeout=_optional(heartbeat_timeout),
        semantics=semantics,
    )
    frame_locals = sys._getframe(1).f_locals

    def decorate(fn: Callable[..., Any]) -> Step[..., Any]:
        made: Step[..., Any] = Step(
            fn, name=name, options=options, signature=Signature(fn, frame_locals)
        )
        (registry or default_registry).add_step(made)
        return made

    return decorate if fn is None else decorate(fn)


@overload
def workflow(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    version: str = "1.0.0",
    timeout: Duration | None = None,
    retention: Duration | None = None,
    attempts: int = 3,
    step_timeout: Duration | None = None,
    on_failure: OnFailure | None = None,
    pin: bool = False,
    registry: Registry | None = None,
) -> WorkflowDecorator: ...


def workflow(
    fn: Callable[..., Coroutine[Any, Any, Any]] | None = None,
    /,
    *,
    name: str | None = None,
    version: str = "1.0.0",
    timeout: Duration | None = None,
    retention: Duration | None = None,
    attempts: int = 3,
    step_timeout: Duration | None = None,
    on_failure: OnFailure | None = None,
    pin: bool = False,
    registry: Registry | None = None,
) -> Any:
    """Make an `async def` a workflow: a durable function whose runs survive their process.

    Args:
        fn: The body: asyncio code that does its I/O in steps.
        name: Its name in documents; the qualified name of the function by default.
        version: The version of the code; runs go on with the newest one that is registered.
        timeout: How long a run may take in all, sleeps and all generations included; then it is
            failed.
        retention: How long after its end a run's document is kept; for ever by default.
        attempts: Of its steps that don't say otherwise.
        step_timeout: Of its steps that don't say otherwise.
        on_failure: Called with the exception, within the run, when the body has failed; steps
            called by it are durable too.
        pin: Leave this version's runs to workers that have this version.
        registry: Another registry than the global one.

    Raises:
        ValidationError: It is no `async def`, or a name or a number is not acceptable.
        DefinitionConflict: Another function is a workflow of that name and version.
    """
    frame_locals = sys._getframe(1).f_locals

    def decorate(fn: Callable[..., Coroutine[Any, Any, Any]]) -> Workflow[..., Any]:
        made: Workflow[..., Any] = Workflow(
            fn,
            name=name,
            version=version,
            timeout=_optional(timeout),
            retention=_optional(retention),
            step_defaults=StepDefaults(attempts=attempts, timeout=_optional(step_timeout)),
            on_failure=on_failure,
            pin=pin,
            signature=Signature(fn, frame_locals),
        )
        (registry or default_registry).add_workflow(made)
        return made

    return decorate if fn is None else decorate(fn)


def _optional(duration: Duration | None) -> timedelta | None:
    return None if duration is None else to_timedelta(duration)

"""`Workflow`: a durable function, and how a run of it is launched."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, ParamSpec, TypeVar

from streamline.definitions.signature import Signature
from streamline.definitions.step import StepDefaults
from streamline.durations import Duration
from streamline.errors import InvalidState, ValidationError
from streamline.handles import Engine, OnExisting, RunHandle, StartOptions, current_control
from streamline.ids import check_name
from streamline.runtime import BodyRuntime, body_runtime

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])
OnFailure = Callable[[Exception], Coroutine[Any, Any, Any]]


def _awaitable(fn: F) -> F:
    """Mark what returns a coroutine: frameworks would else call it in a thread and never await."""
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(fn)
    fn._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return fn


class Workflow(Generic[P, R_co]):
    """A durable function; made by `@workflow`.

    `await flow.start(...)` starts a run in the background; `await flow(...)` starts one and waits
    for its result. In the body of another workflow the run is a durable child.
    """

    def __init__(
        self,
        fn: Callable[P, Coroutine[Any, Any, R_co]],
        *,
        name: str | None,
        version: str,
        timeout: timedelta | None,
        retention: timedelta | None,
        step_defaults: StepDefaults,
        on_failure: OnFailure | None,
        pin: bool,
        signature: Signature,
    ) -> None:
        if not inspect.iscoroutinefunction(fn):
            raise ValidationError(f"@workflow needs an `async def`; {fn.__qualname__} isn't one")
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.name: str = check_name(name or fn.__qualname__, what="a workflow")
        self.version: str = check_name(version, what="a version")
        self.timeout = timeout
        self.retention = retention
        self.step_defaults = step_defaults
        self.on_failure = on_failure
        self.pin = pin
        self.signature = signature

    @property
    def code(self) -> str:
        """What a new run's `code` is: the name, or `name@version` if its version is pinned."""
        return f"{self.name}@{self.version}" if self.pin else self.name

    # Not `async def`: in a body the id is given by the call. For the type see `Step.__call__`.
    @_awaitable
    def start(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, RunHandle[R_co]]:
        """Start a run in the background; it is durable when this returns.

        In a workflow body it is a child, that goes on by itself unless the parent is cancelled.

        Raises:
            ValidationError: The arguments don't fit the function, or can't be stored.
            PayloadTooLarge: They are larger than may be stored.
            InvalidState: No engine is started.
            ServerUnavailable: MongoDB doesn't answer.
        """
        return _start(self, args, kwargs, StartOptions(), None)

    def options(
        self,
        *,
        id: str | None = None,
        start_at: datetime | None = None,
        delay: Duration | None = None,
        context: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        priority: int = 0,
        tenant: str | None = None,
        expire_after: Duration | None = None,
        on_existing: OnExisting = "reuse",
        engine: Engine | None = None,
    ) -> Launch[P, R_co]:
        """Return a launch with options: `await flow.options(id="o-1").start(...)`.

        Args:
            id: The run's id, an idempotency key: a second start with it returns the same run.
            start_at: Not before this instant (aware); a past one is now.
            delay: Not before so long from now.
            context: The run's own state to begin with.
            meta: Whatever the caller wants to keep with the run.
            tags: Words to find it by.
            priority: Kept with the run.
            tenant: Kept with the run.
            expire_after: The document is deleted so long after the run's end.
            on_existing: If a run of this id has ended: `"reuse"` its result, `"fail"` with
                `RunConflict`, or `"restart"` it with the new input.
            engine: Another engine than the current one.
        """
        options = StartOptions(
            id=id,
            start_at=start_at,
            delay=delay,
            context=context,
            meta=meta,
            tags=tags,
            priority=priority,
            tenant=tenant,
            expire_after=expire_after,
            on_existing=on_existing,
        )
        return Launch(self, options, engine)

    def handle(self, run_id: str) -> RunHandle[R_co]:
        """Return the handle of a run of this workflow, whether it exists or not."""
        body = body_runtime()
        if body is not None:
            handle: RunHandle[R_co] = body.child_handle(run_id)
            return handle
        return RunHandle(current_control(), run_id)

    @_awaitable
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, R_co]:
        return _call(self, args, kwargs, StartOptions(), None)

    def __repr__(self) -> str:
        return f"<workflow {self.name} {self.version}>"


class Launch(Generic[P, R_co]):
    """A workflow with the options of one start."""

    def __init__(
        self, flow: Workflow[P, R_co], options: StartOptions, engine: Engine | None
    ) -> None:
        self._flow = flow
        self._options = options
        self._engine = engine

    @_awaitable
    def start(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, RunHandle[R_co]]:
        """Start a run as `Workflow.start` does, and with the same errors.

        Raises:
            RunConflict: The id belongs to a run of another workflow or input, or to an ended run
                with `on_existing="fail"`.
        """
        return _start(self._flow, args, kwargs, self._options, self._engine)

    @_awaitable
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, R_co]:
        """Start a run as `start` does, and return its result."""
        return _call(self._flow, args, kwargs, self._options, self._engine)


def _start(
    flow: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: StartOptions,
    engine: Engine | None,
) -> Coroutine[Any, Any, Any]:
    body = _calling_body(flow, engine)
    if body is not None:
        return body.start_child(flow, args, kwargs, options)
    return _start_outside(flow, args, kwargs, options, engine)


def _call(
    flow: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: StartOptions,
    engine: Engine | None,
) -> Coroutine[Any, Any, Any]:
    body = _calling_body(flow, engine)
    if body is not None:
        return body.call_child(flow, args, kwargs, options)
    return _call_outside(flow, args, kwargs, options, engine)


async def _start_outside(
    flow: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: StartOptions,
    engine: Engine | None,
) -> RunHandle[Any]:
    control = current_control() if engine is None else engine.control
    return await control.start_run(flow, args, kwargs, options)


async def _call_outside(
    flow: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: StartOptions,
    engine: Engine | None,
) -> Any:
    return await (await _start_outside(flow, args, kwargs, options, engine)).result()


def _calling_body(flow: Any, engine: Engine | None) -> BodyRuntime | None:
    """Return the body that makes a call, if one does; it can't choose the engine."""
    body = body_runtime()
    if body is not None and engine is not None:
        raise InvalidState(
            f"run {body.run.id!r} called workflow {flow.name!r} with engine= in its body: a child "
            "lives where its parent does. Start it in a @step",
            run_id=body.run.id,
        )
    return body

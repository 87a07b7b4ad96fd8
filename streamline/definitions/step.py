"""`Step`: a function whose result is recorded once, and how it is attempted."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import msgspec
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from streamline.definitions.signature import Signature
from streamline.ids import check_name
from streamline.retry import RetryPolicy
from streamline.runtime import body_runtime, step_threads

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
Semantics = Literal["at_least_once", "at_most_once"]


class StepDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a workflow sets for those of its steps that don't say otherwise."""

    attempts: int = 3
    timeout: timedelta | None = None


class StepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a step is attempted; None leaves it to the workflow's `StepDefaults`."""

    attempts: int | None = None
    stop: stop_base | None = None
    wait: wait_base | None = None
    retry: retry_base | None = None
    timeout: timedelta | None = None
    heartbeat_timeout: timedelta | None = None
    semantics: Semantics = "at_least_once"

    def policy(self, defaults: StepDefaults) -> RetryPolicy:
        """Return the retry policy with the defaults filled in."""
        # What may have happened must not happen again by itself, so there the default is one.
        fallback = 1 if self.semantics == "at_most_once" else defaults.attempts
        policy = RetryPolicy(
            attempts=fallback if self.attempts is None else self.attempts, stop=self.stop
        )
        if self.wait is not None:
            policy = msgspec.structs.replace(policy, wait=self.wait)
        if self.retry is not None:
            policy = msgspec.structs.replace(policy, retry=self.retry)
        return policy


class Step(Generic[P, R_co]):
    """A function whose result is recorded once; made by `@step`.

    In a workflow body a call is a command, and its result comes from the journal if it is there.
    In another step, or outside a run, it is the plain function; a plain `def` runs in a thread.
    """

    def __init__(
        self,
        fn: Callable[P, Any],
        *,
        name: str | None,
        options: StepOptions,
        signature: Signature,
    ) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.name: str = check_name(name or fn.__qualname__, what="a step")
        self.options = options
        self.signature = signature
        self.is_async: bool = inspect.iscoroutinefunction(fn)
        self._policies: dict[int, RetryPolicy] = {}

    # None for what is yielded and sent: with Any there, mypy makes Any of `gather(a(), b())`.
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, R_co]:
        body = body_runtime()
        if body is not None:
            return body.call_step(self, args, kwargs)
        return self.run_plainly(*args, **kwargs)

    def run_plainly(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, R_co]:
        """Run the function itself; nothing is recorded."""
        if self.is_async:
            call: Coroutine[None, None, R_co] = self.fn(*args, **kwargs)
            return call
        return _in_thread(functools.partial(self.fn, *args, **kwargs))

    def policy(self, defaults: StepDefaults) -> RetryPolicy:
        """Return the retry policy with the defaults filled in."""
        found = self._policies.get(defaults.attempts)
        if found is None:
            found = self._policies[defaults.attempts] = self.options.policy(defaults)
        return found

    def __repr__(self) -> str:
        return f"<step {self.name}>"


async def _in_thread(call: Callable[[], Any]) -> Any:
    keep = functools.partial(_keep, contextvars.copy_context(), call)
    loop = asyncio.get_running_loop()
    value, error = await loop.run_in_executor(step_threads(), keep)
    if error is not None:
        raise error
    return value


def _keep(
    context: contextvars.Context, call: Callable[[], Any]
) -> tuple[Any, BaseException | None]:
    # As a value: a future refuses a StopIteration, and whoever waits for it waits for ever.
    try:
        return context.run(call), None
    except BaseException as error:
        return None, error

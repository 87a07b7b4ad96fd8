"""`StepAttempt`: one attempt of one step, on the real event loop, and what came of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import msgspec

from streamline.codec import Limits, decode, encode
from streamline.errors import InvalidState, StepTimeout
from streamline.model import Run
from streamline.replay import Execution, StepCommand
from streamline.runtime import StepRuntime, enter_runtime

_log = logging.getLogger(__name__)

CANCEL_GRACE = 5.0
"""Seconds that a step gets for its cleanup after its timeout, before it is left behind."""


class AttemptResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an attempt: an encoded value, or an error."""

    value: Any = None
    error: BaseException | None = None
    context: dict[str, Any] | None = None
    returned: Any = None  # the live object, for retry strategies that look at results


class StepAttempt(StepRuntime):
    """One attempt; `run()` never raises but when it is cancelled from outside.

    Args:
        execution: The run's body, for what the step may read of it.
        command: Which step, with which arguments.
        attempt: The number of the attempt, from 1.
        timeout: How long it may take.
        last_heartbeat: The details of an earlier attempt's last heartbeat.
        on_heartbeat: Called in the event loop with this and the encoded details of each heartbeat.
        limits: How large payloads may be.
        threads: Where plain functions run.
        loop: Where it runs.
    """

    def __init__(
        self,
        execution: Execution,
        command: StepCommand,
        *,
        attempt: int,
        timeout: timedelta | None,
        last_heartbeat: Any,
        on_heartbeat: Callable[[StepAttempt, Any], None],
        limits: Limits,
        threads: Executor | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.threads = threads
        self.run: Run = execution.run
        self.step_id: str = command.id
        self.attempt = attempt
        self._cancelled = False
        self._cancelled_event: threading.Event | None = None
        self.last_heartbeat = last_heartbeat
        self._execution = execution
        self._command = command
        self._timeout = None if timeout is None else timeout.total_seconds()
        quiet = command.step.options.heartbeat_timeout
        self._quiet = None if quiet is None else quiet.total_seconds()
        self._on_heartbeat = on_heartbeat
        self._limits = limits
        self._changes: dict[str, Any] = {}
        self._loop = loop
        self._silence: asyncio.Timeout | None = None

    # -- running ----------------------------------------------------------------------------------

    async def perform(self) -> AttemptResult:
        """Run the step once and return what came of it, encoded."""
        try:
            limited = self._timeout is not None or self._quiet is not None
            returned = await (self._call_in_time() if limited else self._call())
            value = self._encode(returned)
        except asyncio.CancelledError as error:
            self.mark_cancelled()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return AttemptResult(error=error, context=self._changes or None)
        except BaseException as error:
            return AttemptResult(error=error, context=self._changes or None)
        return AttemptResult(value=value, context=self._changes or None, returned=returned)

    def _encode(self, returned: Any) -> Any:
        what = f"the result of step {self.step_id!r} of run {self.run.id!r}"
        limits = self._limits
        value = encode(returned, what=what, limit=limits.payload, inline=limits.inline)
        # Read back now: a result that doesn't fit its annotation must fail here, not in a replay.
        decode(value, self._command.step.signature.returns, what=what)
        return value

    async def _call_in_time(self) -> Any:
        task = self._loop.create_task(self._call_kept())
        whole, quiet = asyncio.timeout(self._timeout), asyncio.timeout(self._quiet)
        try:
            async with whole, quiet:
                self._silence = quiet
                returned, error = await asyncio.shield(task)
            if error is not None:
                raise error
            return returned
        except TimeoutError:
            if whole.expired():
                raise await self._stop(task, f"took longer than {self._timeout:g} s") from None
            if quiet.expired():
                raise await self._stop(task, f"sent no heartbeat for {self._quiet:g} s") from None
            raise
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            self._silence = None

    async def _stop(self, task: asyncio.Task[Any], why: str) -> StepTimeout:
        """Cancel an attempt that is out of time; wait for its cleanup, but not for ever."""
        self.mark_cancelled()
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_GRACE)
        what = f"step {self.step_id!r} of run {self.run.id!r}, attempt {self.attempt}, {why}"
        if not task.done():
            _log.warning("%s and doesn't end when cancelled; it is left behind", what)
        elif not task.cancelled() and task.exception() is not None:
            _log.debug("%s; its cleanup raised", what, exc_info=task.exception())
        return StepTimeout(what, run_id=self.run.id, step=self.step_id)

    async def _call_kept(self) -> tuple[Any, BaseException | None]:
        try:
            return await self._call(), None
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            # The first two go from a task through the event loop, and end the process; the last,
            # thrown into whoever waits for the task, closes coroutines and is lost.
            return None, error

    def _call(self) -> Coroutine[Any, Any, Any]:
        # The task is this attempt's own, so its context is too.
        enter_runtime(self)
        return self._command.step.run_plainly(*self._command.args, **self._command.kwargs)

    # -- what the step asks (StepRuntime) ---------------------------------------------------------

    @property
    def replaying(self) -> bool:
        return False

    @property
    def context(self) -> Mapping[str, Any]:
        return MappingProxyType({**self._execution.context, **self._changes})

    def set_context(self, changes: Mapping[str, Any]) -> None:
        what = f"the context of run {self.run.id!r}"
        self._changes.update(encode(dict(changes), what=what, limit=self._limits.document))

    def output_of(self, step_id: str) -> Any:
        return self._execution.output_of(step_id)

    def workflow_input(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._execution.workflow_input()

    @property
    def cancelled(self) -> threading.Event:
        # Made when it is asked for: few steps do, and it is costly next to a short step.
        if self._cancelled_event is None:
            self._cancelled_event = threading.Event()
            if self._cancelled:
                self._cancelled_event.set()
        return self._cancelled_event

    def mark_cancelled(self) -> None:
        """Let the step see that it is cancelled."""
        self._cancelled = True
        if self._cancelled_event is not None:
            self._cancelled_event.set()

    def heartbeat(self, details: Any) -> None:
        if self._cancelled:
            raise InvalidState(
                f"step {self.step_id!r} of run {self.run.id!r} was cancelled; stop it",
                run_id=self.run.id,
                step=self.step_id,
            )
        what = f"the heartbeat of step {self.step_id!r} of run {self.run.id!r}"
        encoded = encode(details, what=what, limit=self._limits.document)
        if _in_loop(self._loop):
            # At once: the attempt may end before the loop turns again.
            self._beat(encoded)
        else:
            # A step in a thread; its end comes the same way, and later.
            self._loop.call_soon_threadsafe(self._beat, encoded)

    def _beat(self, details: Any) -> None:
        silence = self._silence
        if silence is not None and self._quiet is not None and not silence.expired():
            silence.reschedule(self._loop.time() + self._quiet)
        self._on_heartbeat(self, details)


def _in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False

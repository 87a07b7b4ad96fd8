"""`StepBoard`: the steps that one run has in hand, their attempts and retries.

Attempts run as tasks on the real loop. What they end with becomes a fact: a journal entry that the
driver applies and commits. Nothing here writes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from streamline.clock import to_milliseconds
from streamline.codec import encode_exception
from streamline.definitions import StepDefaults
from streamline.errors import (
    ErrorCode,
    MaxRetriesExceeded,
    PayloadTooLarge,
    StepFailed,
    StepTimeout,
    ValidationError,
)
from streamline.events import Event
from streamline.model import Attempt, Entry, EntryKind
from streamline.replay import Execution, StepCommand
from streamline.retry import RetryPolicy, Verdict
from streamline.worker.attempt import AttemptResult, StepAttempt
from streamline.worker.held import HeldRun
from streamline.worker.services import Services


class StepState(msgspec.Struct, kw_only=True):
    """One step in hand: which attempt is next or running, and since when."""

    command: StepCommand
    policy: RetryPolicy
    timeout: timedelta | None
    attempt: int = 1
    first_started_at: datetime | None = None
    started_at: datetime | None = None
    retry_at: datetime | None = None
    heartbeat: Any = None
    running: StepAttempt | None = None
    task: asyncio.Task[None] | None = None

    @property
    def at_most_once(self) -> bool:
        """Whether an attempt must be on record before it starts."""
        return self.command.step.options.semantics == "at_most_once"


class StepBoard:
    """The steps of one run that are asked for and not yet answered.

    Args:
        services: The worker's.
        defaults: What the workflow says for its steps.
        held: The run; no attempt starts once its lease is over.
        on_change: Called when a fact has come in, or an attempt was called off.
        on_heartbeat: Called with a step's id and the details.
    """

    def __init__(
        self,
        services: Services,
        defaults: StepDefaults,
        held: HeldRun,
        *,
        on_change: Callable[[], None],
        on_heartbeat: Callable[[str, Any], None],
    ) -> None:
        self.facts: deque[Entry] = deque()
        self._services = services
        self._defaults = defaults
        self._on_change = on_change
        self._on_heartbeat = on_heartbeat
        self._held = held
        self._states: dict[str, StepState] = {}
        self._loop = asyncio.get_running_loop()

    # -- what is in hand --------------------------------------------------------------------------

    def add(
        self, command: StepCommand, *, failures: Sequence[Entry], stored: Attempt | None
    ) -> None:
        """Take in a step that the body asked for.

        Args:
            command: What was asked; the replay of a run that goes on asks again for what runs.
            failures: The recorded failures of earlier attempts.
            stored: The attempt that was running when an earlier worker lost the run.
        """
        known = self._states.get(command.id)
        if known is not None:
            known.command = command
            return
        state = StepState(
            command=command,
            policy=command.step.policy(self._defaults),
            timeout=command.step.options.timeout or self._defaults.timeout,
        )
        self._states[command.id] = state
        for failure in failures:
            self.note_failure(failure)
        if stored is not None and stored.attempt == state.attempt:
            state.heartbeat = stored.heartbeat
            if state.at_most_once:
                state.started_at = state.first_started_at = stored.started_at
                self._conclude(state, AttemptResult(error=_interrupted(command.id, stored)))

    def note_failure(self, failure: Entry) -> None:
        """Take a recorded failure into account: the next attempt's number and time."""
        state = self._states.get(failure.id)
        if state is not None:
            state.attempt = failure.attempt + 1
            state.retry_at = failure.retry_at
            state.first_started_at = state.first_started_at or failure.started_at
            state.heartbeat = failure.value if failure.value is not None else state.heartbeat

    def remove(self, step_id: str) -> None:
        """Forget a step that was answered or withdrawn; a running attempt is cancelled."""
        state = self._states.pop(step_id, None)
        if state is not None and state.task is not None:
            if state.running is not None:
                state.running.mark_cancelled()
            state.task.cancel()

    def cancel_all(self) -> None:
        """Cancel every attempt and forget every step and fact."""
        for step_id in list(self._states):
            self.remove(step_id)
        self.facts.clear()

    @property
    def running(self) -> bool:
        """Whether an attempt runs, or has ended and was not yet taken in."""
        return bool(self.facts) or any(state.task is not None for state in self._states.values())

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of the running attempts."""
        return [state.task for state in self._states.values() if state.task is not None]

    def ready(self, execution: Execution) -> list[StepState]:
        """Return the steps that could start now."""
        answered = {fact.id for fact in self.facts} if self.facts else ()
        return [
            state
            for id_, state in self._states.items()
            if state.task is None
            and id_ in execution.open
            and id_ not in answered
            and (state.retry_at is None or state.retry_at <= self._services.clock.now())
        ]

    def next_retry(self) -> datetime | None:
        """Return when the earliest pending retry is due."""
        times = [s.retry_at for s in self._states.values() if s.task is None and s.retry_at]
        return min(times) if times else None

    def attempts(self, starting: Sequence[StepState], now: datetime) -> tuple[Attempt, ...]:
        """Return what the document shows as running once `starting` have started."""
        return tuple(
            Attempt(
                id=state.command.id,
                attempt=state.attempt,
                started_at=state.started_at or now,
                heartbeat=state.heartbeat,
            )
            for state in self._states.values()
            if state.task is not None or state in starting
        )

    # -- attempts ---------------------------------------------------------------------------------

    def start(self, state: StepState, execution: Execution, now: datetime) -> None:
        """Start the next attempt of a step."""
        state.started_at = now
        state.first_started_at = state.first_started_at or now
        state.retry_at = None
        state.running = StepAttempt(
            execution,
            self._substituted(state.command),
            attempt=state.attempt,
            timeout=state.timeout,
            last_heartbeat=state.heartbeat,
            on_heartbeat=self._beat,
            limits=self._services.limits,
            threads=self._services.threads,
            loop=self._loop,
        )
        state.task = self._loop.create_task(
            self._attempt(state, state.running), name=f"{execution.run.id}/{state.command.id}"
        )
        self._emit("step:started", execution, state)

    async def _attempt(self, state: StepState, attempt: StepAttempt) -> None:
        # Asked here and not only by the driver: the process may stand still before its next turn.
        try:
            result = None if self._held.lease_is_over else await attempt.perform()
        except GeneratorExit as error:
            # Of something that the step awaited; else this task is being thrown away.
            if not _is_running(state.task):
                raise
            result = AttemptResult(error=error)
        if self._states.get(state.command.id) is state:
            state.task = None
            state.running = None
            if result is not None:
                self._conclude(state, result)
            self._on_change()

    def _substituted(self, command: StepCommand) -> StepCommand:
        replace = self._services.replace_step
        return (
            command
            if replace is None
            else msgspec.structs.replace(command, step=replace(command.step))
        )

    def _beat(self, attempt: StepAttempt, details: Any) -> None:
        state = self._states.get(attempt.step_id)
        if state is None or state.running is not attempt:
            return  # from a thread, after the step was called off; another may have its id by now
        state.heartbeat = details
        self._on_heartbeat(attempt.step_id, details)

    def _conclude(self, state: StepState, result: AttemptResult) -> None:
        """Turn what an attempt ended with into a fact: a result, a failure, or another try."""
        now = self._services.clock.now()
        try:
            verdict, retry_at = self._judge(state, result, now)
        except BaseException as mistake:
            # A strategy is user code too; were this let out, the run would wait for ever.
            mistake.__cause__ = mistake.__cause__ or result.error
            result = AttemptResult(error=mistake)
            verdict, retry_at = Verdict(unwanted=False), None
        if retry_at is not None:
            fact = self._retried(state, result, now, retry_at)
        elif result.error is None and not verdict.unwanted:
            fact = self._entry(
                state, EntryKind.STEP, now, value=result.value, context=result.context
            )
        else:
            error = result.error or _unwanted(state)
            code = _final_code(state, error, verdict)
            failure = encode_exception(error, code=code, step=state.command.id)
            fact = self._entry(state, EntryKind.STEP, now, error=failure, context=result.context)
        self.facts.append(fact)

    def _judge(
        self, state: StepState, result: AttemptResult, now: datetime
    ) -> tuple[Verdict, datetime | None]:
        """Ask the policy; returns its verdict and when to try again, if at all."""
        first = state.first_started_at or now
        verdict = state.policy.judge(
            attempt=state.attempt,
            elapsed=(now - first).total_seconds(),
            error=result.error,
            result=result.returned,
        )
        return verdict, None if verdict.wait is None else to_milliseconds(now + verdict.wait)

    def _retried(
        self, state: StepState, result: AttemptResult, now: datetime, retry_at: datetime
    ) -> Entry:
        error = result.error or _unwanted(state)
        failure = encode_exception(error, code=_code_of(error), step=state.command.id)
        # The next attempt may be another process's: the last heartbeat goes with the failure.
        return self._entry(
            state,
            EntryKind.ATTEMPT,
            now,
            value=state.heartbeat,
            error=failure,
            retry_at=retry_at,
        )

    def _entry(self, state: StepState, kind: EntryKind, at: datetime, **fields: Any) -> Entry:
        return Entry(
            id=state.command.id,
            kind=kind,
            at=at,
            fence=self._held.run.fence,
            attempt=state.attempt,
            started_at=state.started_at,
            **fields,
        )

    def _emit(self, name: str, execution: Execution, state: StepState) -> None:
        if not self._services.events.heard:
            return
        self._services.events.emit(
            Event(
                name=name,
                at=self._services.clock.now(),
                run_id=execution.run.id,
                workflow=execution.run.workflow,
                step=state.command.id,
                attempt=state.attempt,
            )
        )


def _is_running(task: asyncio.Task[None] | None) -> bool:
    try:
        return task is not None and asyncio.current_task() is task
    except RuntimeError:
        return False


def _interrupted(step_id: str, stored: Attempt) -> StepFailed:
    return StepFailed(
        f"step {step_id!r}, attempt {stored.attempt}, was interrupted: its process died or lost "
        "the run. It is at_most_once, so this attempt counts as failed",
        step=step_id,
    )


def _unwanted(state: StepState) -> MaxRetriesExceeded:
    return MaxRetriesExceeded(
        f"step {state.command.id!r}: attempt {state.attempt} returned what its retry= strategy "
        "doesn't accept",
        step=state.command.id,
    )


def _code_of(error: BaseException) -> ErrorCode:
    # A result that can't be stored says so; whatever else a step raises is the step's failure.
    telling = (StepTimeout, ValidationError, PayloadTooLarge)
    return error.code if isinstance(error, telling) else ErrorCode.STEP_FAILED


def _final_code(state: StepState, error: BaseException, verdict: Verdict) -> ErrorCode:
    if state.attempt > 1 and verdict.unwanted:
        return ErrorCode.MAX_RETRIES_EXCEEDED
    return _code_of(error)

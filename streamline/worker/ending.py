"""How an outcome of a body becomes the end of its run."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from streamline.codec import Failure, Limits, encode, encode_exception
from streamline.definitions import Workflow
from streamline.errors import (
    ErrorCode,
    PayloadTooLarge,
    RunCancelled,
    RunFailed,
    StreamlineError,
    ValidationError,
)
from streamline.model import Input, Run, Status
from streamline.replay import Cancelled, Continued, Execution, Returned


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """The status, output and error that a run ends with. `error` is the live exception.

    With `continues_with`, only this generation ends; the next one begins with these arguments.
    """

    status: Status
    output: Any = None
    failure: Failure | None = None
    error: BaseException | None = None
    continues_with: Input | None = None


def settle(execution: Execution, run: Run, workflow: Workflow[..., Any], limits: Limits) -> Ending:
    """Return how a run ends, or this generation of it, whose body has an outcome."""
    outcome = execution.outcome
    if isinstance(outcome, Continued):
        return Ending(status=Status.RUNNING, continues_with=outcome.given)
    if isinstance(outcome, Cancelled):
        return cancelled(run, execution.cancel_reason)
    if isinstance(outcome, Returned):
        what = f"the result of run {run.id!r} of workflow {workflow.name!r}"
        try:
            output = encode(outcome.value, what=what, limit=limits.payload, inline=limits.inline)
            return Ending(status=Status.DONE, output=output)
        except (ValidationError, PayloadTooLarge) as error:
            return fail(error, run, execution)
    assert outcome is not None
    return fail(outcome.error, run, execution)


def cancelled(run: Run, reason: str | None = None) -> Ending:
    """Return how a cancelled run ends."""
    because = f": {reason}" if reason else ""
    error = RunCancelled(f"run {run.id!r} was cancelled{because}", run_id=run.id)
    failure = encode_exception(error, code=error.code)
    return Ending(status=Status.CANCELLED, failure=failure, error=error)


def poisoned(run: Run) -> Ending:
    """Return how a run ends that took its process down again and again."""
    error = RunFailed(
        f"run {run.id!r} lost its worker {run.recoveries} times without progress: its code may "
        "crash or block the process. It was failed to protect the workers; start it anew once "
        "the cause is mended",
        run_id=run.id,
    )
    return fail(error, run, None)


def fail(error: BaseException, run: Run, execution: Execution | None) -> Ending:
    """Return how a run ends with an exception; one that a step raised brings the step's code."""
    step_errors = () if execution is None else execution.step_errors
    recorded = next((failure for raised, failure in step_errors if raised is error), None)
    if recorded is not None:
        return Ending(status=Status.FAILED, failure=recorded, error=error)
    code = error.code if isinstance(error, StreamlineError) else ErrorCode.WORKFLOW_FAILED
    step = error.step if isinstance(error, StreamlineError) else None
    if isinstance(error, asyncio.CancelledError):
        return cancelled(run)
    return Ending(
        status=Status.FAILED,
        failure=encode_exception(error, code=code, step=step),
        error=error,
    )

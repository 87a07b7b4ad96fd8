"""Every error that streamline raises, and the codes that stored errors carry.

    StreamlineError
    ├── ValidationError            an argument, a payload or a definition is not acceptable
    │   └── DefinitionConflict     two definitions of one name and version
    ├── PayloadTooLarge            a value is larger than what may be stored
    ├── DataCorruption             a stored document makes no sense
    ├── WorkflowNotFound           no definition of that name is registered here
    ├── RunNotFound                no run has that id
    ├── StepNotFound               the run has no step of that id
    ├── RunConflict                the id belongs to another workflow, or to another input
    ├── InvalidState               the run is not in a state that allows this
    │   └── RunAlreadyCompleted    it has ended
    ├── RunFailed                  the run ended with an error (its cause is chained)
    ├── RunCancelled               the run was cancelled
    ├── StepFailed                 a step failed for good, and its exception class is not at hand
    │   └── MaxRetriesExceeded     ... after the last of several attempts
    ├── StepTimeout                an attempt, or its heartbeat, took too long; a TimeoutError too
    ├── NonDeterminism             the code no longer matches the journal
    │   └── BodyNotPure            the body did I/O, or awaits what nothing can resolve
    ├── LeaseLost                  another worker took the run over
    └── ServerUnavailable          MongoDB did not answer within the timeout

What user code raises to steer retries: `NonRetryable` and `RetryAfter`.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import ClassVar

from streamline.durations import Duration, to_timedelta


class ErrorCode(StrEnum):
    """What went wrong, as a stable word: `StreamlineError.code` and `error.code` of a run."""

    WORKFLOW_NOT_FOUND = "WORKFLOW_NOT_FOUND"
    WORKFLOW_FAILED = "WORKFLOW_FAILED"
    WORKFLOW_CANCELLED = "WORKFLOW_CANCELLED"
    WORKFLOW_ALREADY_COMPLETED = "WORKFLOW_ALREADY_COMPLETED"
    RUN_NOT_FOUND = "RUN_NOT_FOUND"
    RUN_CONFLICT = "RUN_CONFLICT"
    STEP_NOT_FOUND = "STEP_NOT_FOUND"
    STEP_TIMEOUT = "STEP_TIMEOUT"
    STEP_FAILED = "STEP_FAILED"
    MAX_RETRIES_EXCEEDED = "MAX_RETRIES_EXCEEDED"
    INVALID_STATE = "INVALID_STATE"
    VALIDATION_ERROR = "VALIDATION_ERROR"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    DATA_CORRUPTION = "DATA_CORRUPTION"
    NON_DETERMINISM = "NON_DETERMINISM"
    LEASE_LOST = "LEASE_LOST"
    SERVER_UNAVAILABLE = "SERVER_UNAVAILABLE"


class StreamlineError(Exception):
    """Base of all errors of streamline.

    Args:
        message: What happened, to which run and step, and what to do.
        run_id: The run it happened to, if any.
        step: The id of the step it happened in, if any.
    """

    code: ClassVar[ErrorCode] = ErrorCode.WORKFLOW_FAILED
    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, run_id: str | None = None, step: str | None = None) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.step = step


class ValidationError(StreamlineError):
    """An argument, a payload or a definition is not acceptable; nothing was stored."""

    code = ErrorCode.VALIDATION_ERROR
    retryable = False


class DefinitionConflict(ValidationError):
    """Two different definitions have one name and version."""


class PayloadTooLarge(StreamlineError):
    """A value is larger than what may be stored; nothing was stored."""

    code = ErrorCode.PAYLOAD_TOO_LARGE
    retryable = False


class DataCorruption(StreamlineError):
    """A stored document makes no sense; the run it belongs to is set aside."""

    code = ErrorCode.DATA_CORRUPTION


class WorkflowNotFound(StreamlineError):
    """No workflow of that name (and version) is registered in this process."""

    code = ErrorCode.WORKFLOW_NOT_FOUND


class RunNotFound(StreamlineError):
    """No run has that id."""

    code = ErrorCode.RUN_NOT_FOUND


class StepNotFound(StreamlineError):
    """The run has no recorded step of that id."""

    code = ErrorCode.STEP_NOT_FOUND


class RunConflict(StreamlineError):
    """The id belongs to a run of another workflow, or of another input."""

    code = ErrorCode.RUN_CONFLICT


class InvalidState(StreamlineError):
    """The run is not in a state that allows the operation."""

    code = ErrorCode.INVALID_STATE


class RunAlreadyCompleted(InvalidState):
    """The run has ended."""

    code = ErrorCode.WORKFLOW_ALREADY_COMPLETED


class RunFailed(StreamlineError):
    """The run ended with an error.

    `error_code` is the code stored with the run; the original exception, where its class is at
    hand, is `__cause__`.
    """

    code = ErrorCode.WORKFLOW_FAILED

    def __init__(
        self,
        message: str,
        *,
        run_id: str | None = None,
        step: str | None = None,
        error_code: ErrorCode = ErrorCode.WORKFLOW_FAILED,
    ) -> None:
        super().__init__(message, run_id=run_id, step=step)
        self.error_code = error_code


class RunCancelled(StreamlineError):
    """The run was cancelled."""

    code = ErrorCode.WORKFLOW_CANCELLED


class StepFailed(StreamlineError):
    """A step failed for good.

    Raised in the place of the original exception where that can't be rebuilt: its class is not in a
    loaded module, or is no `Exception`.

    Args:
        type_name: `module:qualname` of the original exception's class.
    """

    code = ErrorCode.STEP_FAILED

    def __init__(
        self,
        message: str,
        *,
        run_id: str | None = None,
        step: str | None = None,
        type_name: str | None = None,
    ) -> None:
        super().__init__(message, run_id=run_id, step=step)
        self.type_name = type_name


class MaxRetriesExceeded(StepFailed):
    """A step failed in each of its attempts."""

    code = ErrorCode.MAX_RETRIES_EXCEEDED


class StepTimeout(StreamlineError, TimeoutError):
    """A step attempt took longer than its `timeout`, or was silent for its `heartbeat_timeout`."""

    code = ErrorCode.STEP_TIMEOUT


class NonDeterminism(StreamlineError):
    """The code no longer matches the journal of the run.

    Args:
        position: Index of the journal entry that did not fit.
        recorded: The id recorded there.
        asked: The ids that the code asks for instead.
    """

    code = ErrorCode.NON_DETERMINISM

    def __init__(
        self,
        message: str,
        *,
        run_id: str | None = None,
        step: str | None = None,
        position: int | None = None,
        recorded: str | None = None,
        asked: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, run_id=run_id, step=step)
        self.position = position
        self.recorded = recorded
        self.asked = asked


class BodyNotPure(NonDeterminism):
    """The body did I/O itself, or awaits something that nothing can resolve."""


class LeaseLost(StreamlineError):
    """Another worker took the run over; what this one computed was not written."""

    code = ErrorCode.LEASE_LOST


class ServerUnavailable(StreamlineError):
    """MongoDB did not answer within the timeout, or refused the connection."""

    code = ErrorCode.SERVER_UNAVAILABLE


class NonRetryable(Exception):
    """Raise it in a step to end the retries. So does any exception with `retryable = False`."""

    retryable: ClassVar[bool] = False


class RetryAfter(Exception):
    """Raise it in a step to set the wait before the next attempt.

    Args:
        delay: Seconds, a timedelta or text such as `"30s"`.
        message: Why; shown in the journal.
    """

    def __init__(self, delay: Duration, message: str = "") -> None:
        super().__init__(message or f"retry after {delay}")
        self.delay: timedelta = to_timedelta(delay)

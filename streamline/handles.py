"""`RunHandle`: what a caller holds of a run, over the interface that the engine implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

import msgspec

from streamline.context import NamedStep
from streamline.documents import WorkflowRun
from streamline.durations import Duration, to_seconds
from streamline.errors import InvalidState
from streamline.ids import check_id
from streamline.model import Status

R_co = TypeVar("R_co", covariant=True)
OnExisting = Literal["reuse", "fail", "restart"]


class StartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a run is started; what is None is left to the workflow's or the engine's defaults."""

    id: str | None = None
    start_at: datetime | None = None
    delay: Duration | None = None
    context: Mapping[str, Any] | None = None
    meta: Mapping[str, Any] | None = None
    tags: Sequence[str] | None = None
    priority: int = 0
    tenant: str | None = None
    expire_after: Duration | None = None
    on_existing: OnExisting = "reuse"


class RunControl(ABC):
    """What definitions and handles need of an engine."""

    @abstractmethod
    async def start_run(
        self,
        flow: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
    ) -> RunHandle[Any]:
        """Make a run durable and return its handle."""

    @abstractmethod
    async def get_run(self, run_id: str) -> WorkflowRun:
        """Return the run as stored; raises `RunNotFound`."""

    @abstractmethod
    async def load_payload(self, run_id: str, value: Any) -> Any:
        """Return what a reference in the run's document stands for; another value as it is."""

    @abstractmethod
    async def get_status(self, run_id: str) -> Status:
        """Return the run's status; raises `RunNotFound`."""

    @abstractmethod
    async def wait_run(self, run_id: str, timeout: float | None) -> WorkflowRun:
        """Return the run once it has ended; raises `RunNotFound`, TimeoutError."""

    @abstractmethod
    async def result_of(self, run_id: str, timeout: float | None) -> Any:
        """Return the run's decoded output once it is done; raises `RunFailed`, `RunCancelled`."""

    @abstractmethod
    async def resume_run(self, run_id: str, payload: Any, name: str | None) -> None:
        """Give an open wait its payload."""

    @abstractmethod
    async def send_message(
        self, run_id: str, channel: str, payload: Any, message_id: str | None
    ) -> None:
        """Put a message in the run's mailbox."""

    @abstractmethod
    async def cancel_run(self, run_id: str, reason: str | None) -> None:
        """Ask the run to end."""

    @abstractmethod
    async def terminate_run(self, run_id: str, reason: str | None) -> None:
        """End the run without asking it."""

    @abstractmethod
    async def pause_run(self, run_id: str, reason: str | None) -> None:
        """Set the run aside at its next step boundary."""

    @abstractmethod
    async def unpause_run(self, run_id: str) -> None:
        """Let a paused run go on."""

    @abstractmethod
    async def rewind_run(self, run_id: str, step: Any) -> None:
        """Let an ended run go on from before a step."""

    @abstractmethod
    async def retry_run(self, run_id: str) -> None:
        """Let a failed run go on from before what it failed with."""

    @abstractmethod
    async def execute_run(self, run_id: str) -> Status:
        """Drive the run in this process until it is done, failed or parked."""


class RunHandle(Generic[R_co]):
    """One run, of this process or another's. `await handle.result()` is what its function returns.

    Every method raises `RunNotFound` if there is no such run, and `ServerUnavailable` if MongoDB
    doesn't answer.
    """

    def __init__(self, control: RunControl, run_id: str) -> None:
        self._control = control
        self.id: str = check_id(run_id, what="a run's id")

    def __repr__(self) -> str:
        return f"<RunHandle {self.id}>"

    async def result(self, timeout: Duration | None = None) -> R_co:
        """Return the run's result, as its function's annotation says, once it is done.

        Raises:
            RunFailed: It failed; the original exception is the cause where its class is at hand.
            RunCancelled: It was cancelled.
            TimeoutError: It has not ended within `timeout`; it goes on.
        """
        value: R_co = await self._control.result_of(self.id, _seconds(timeout))
        return value

    async def wait(self, timeout: Duration | None = None) -> WorkflowRun:
        """Return the run's document once it has ended, however it ended.

        Raises:
            TimeoutError: It has not ended within `timeout`; it goes on.
        """
        return await self._control.wait_run(self.id, _seconds(timeout))

    async def get(self) -> WorkflowRun:
        """Return the run's document as it is now; `load` has what its references stand for."""
        return await self._control.get_run(self.id)

    async def load(self, value: Any) -> Any:
        """Return the payload that a reference in the run's document stands for.

        Large payloads are kept outside of the document, which has `{"payload": ObjectId(...),
        "size": ...}` instead.

        Args:
            value: What the document has as an output, a step's value, a message's payload, or as
                the only argument of an input, which stands for `[args, kwargs]`. A value that is no
                reference is returned as it is.

        Raises:
            DataCorruption: The payload is missing, or isn't this run's.
        """
        return await self._control.load_payload(self.id, value)

    async def status(self) -> Status:
        """Return the run's status as it is now."""
        return await self._control.get_status(self.id)

    async def resume(self, payload: Any = None, *, name: str | None = None) -> None:
        """Give the run what it waits for; of two at once one wins.

        Args:
            payload: What `wait()` returns in the run; checked against the wait's type.
            name: Which wait, if several are open.

        Raises:
            InvalidState: It isn't waiting (any more), or several waits are open and none is named.
            ValidationError: The payload is not of the type that the run waits for.
        """
        await self._control.resume_run(self.id, payload, name)

    async def send(self, channel: str, payload: Any = None, *, id: str | None = None) -> None:
        """Put a message in the run's mailbox; it is kept, in order, until the run receives it.

        Args:
            channel: The name that `receive` names in the run.
            payload: Any value that can be stored.
            id: A repeated id counts once.

        Raises:
            RunAlreadyCompleted: The run has ended.
            PayloadTooLarge: The mailbox is full, or the payload too large.
        """
        await self._control.send_message(self.id, channel, payload, id)

    async def cancel(self, reason: str | None = None) -> None:
        """Ask the run to end: its body gets a CancelledError and may clean up. No-op once ended."""
        await self._control.cancel_run(self.id, reason)

    async def terminate(self, reason: str | None = None) -> None:
        """End the run now, as cancelled, without asking its body. No-op once ended."""
        await self._control.terminate_run(self.id, reason)

    async def pause(self, reason: str | None = None) -> None:
        """Set the run aside at its next step boundary.

        Raises:
            RunAlreadyCompleted: The run has ended.
        """
        await self._control.pause_run(self.id, reason)

    async def unpause(self) -> None:
        """Let a paused run go on; also one that was paused because its code had changed.

        Raises:
            InvalidState: It is not paused.
        """
        await self._control.unpause_run(self.id)

    async def rewind(self, step: NamedStep | str) -> None:
        """Let a run that is done or has failed go on from before a step, which runs again.

        What the journal holds from that step's first entry on is dropped; messages that were taken
        there are not taken again.

        Args:
            step: The step's definition, for its first call, or an id such as `"charge#2"`.

        Raises:
            StepNotFound: The run has no record of that step.
            InvalidState: The run was cancelled, or has not ended.
        """
        await self._control.rewind_run(self.id, step)

    async def retry(self) -> None:
        """Let a failed run go on from before the last failure of a step; all else is kept.

        A run that failed in its body, not in a step, goes on from its last recorded entry.

        Raises:
            InvalidState: The run has not failed.
        """
        await self._control.retry_run(self.id)

    async def execute(self) -> Status:
        """Drive the run in this process until it is done, failed or parked; needs no worker.

        Returns:
            The status it was left in; `running` if another worker holds it.
        """
        return await self._control.execute_run(self.id)


class Engine(ABC):
    """What starts runs: `Streamline`, as far as definitions know it."""

    @property
    @abstractmethod
    def control(self) -> RunControl:
        """Its control; raises `InvalidState` if it isn't started."""


_local_engine: ContextVar[Engine | None] = ContextVar("streamline_engine", default=None)
_started_engines: list[Engine] = []


def set_current_engine(engine: Engine) -> None:
    """Make an engine the one that definitions use: in this context, and where none is set."""
    _local_engine.set(engine)
    _started_engines.append(engine)


def unset_current_engine(engine: Engine) -> None:
    """Take back `set_current_engine`."""
    if _local_engine.get() is engine:
        _local_engine.set(None)
    if engine in _started_engines:
        _started_engines.remove(engine)


def current_control() -> RunControl:
    """Return the control of this context's engine, else of the one started last in this process.

    Raises:
        InvalidState: No engine is started.
    """
    local = _local_engine.get()
    if local is not None and local in _started_engines:
        return local.control
    if not _started_engines:
        raise InvalidState(
            "no engine is started: use `async with Streamline(...)`, or flow.options(engine=...)"
        )
    return _started_engines[-1].control


def _seconds(timeout: Duration | None) -> float | None:
    return None if timeout is None else to_seconds(timeout)

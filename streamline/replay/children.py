"""`Children`: what a body has to do with the runs that it starts.

A call in the body is a command: its run is started outside, by the driver, and two entries answer
it. Handles that a body holds are its own: what would be I/O is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Set
from datetime import datetime
from typing import Any, NoReturn

import msgspec

from streamline.codec import Failure, decode, decode_exception, encode
from streamline.definitions import Workflow
from streamline.documents import WorkflowRun
from streamline.errors import InvalidState, ValidationError
from streamline.handles import RunControl, RunHandle, StartOptions, current_control
from streamline.ids import check_id, child_id
from streamline.model import DispatchKind, Entry, EntryKind, Run, Slot, SlotKind, Status
from streamline.replay.commands import ChildCommand
from streamline.replay.eviction import Never
from streamline.replay.loop import ReplayLoop
from streamline.runtime import body_runtime

REASON_LIMIT = 16 * 1024
"""Bytes of the reason of a cancel, as outside of bodies."""
Request = tuple[DispatchKind, str, Any]
"""What a body wants of a child: the kind, the id of its run, the reason."""


class Children:
    """The children of one body.

    Args:
        run: The parent.
        loop: The body's.
        limit: How many bytes a payload may have.
        recorded: The commands whose start is recorded.
        next_id: Gives a command its id.
        issue: Takes a command.
        answer: Waits for a future, and withdraws the command of this id if that is cancelled.
        now: Returns the time in the body.
        request: Takes what a child is to be told.
        keep_error: Takes an exception that a child raises in the body, and what it was made of.
    """

    def __init__(
        self,
        run: Run,
        loop: ReplayLoop,
        *,
        limit: int,
        recorded: Set[str],
        next_id: Callable[[str], str],
        issue: Callable[[ChildCommand], None],
        answer: Callable[[str, asyncio.Future[Any]], Coroutine[Any, Any, Any]],
        now: Callable[[], datetime],
        request: Callable[[Request], None],
        keep_error: Callable[[Exception, Failure], None],
    ) -> None:
        self._run = run
        self._loop = loop
        self._limit = limit
        self._recorded = recorded
        self._next_id = next_id
        self._issue = issue
        self._answer = answer
        self._now = now
        self._request = request
        self._keep_error = keep_error

    # -- calls ------------------------------------------------------------------------------------

    def call(
        self,
        flow: Workflow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
    ) -> Coroutine[Any, Any, Any]:
        """Start a run and wait for its result; whoever cancels the wait cancels the run."""
        return self._called(self._next_id(flow.name), flow, args, kwargs, options)

    def start(
        self,
        flow: Workflow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
    ) -> Coroutine[Any, Any, RunHandle[Any]]:
        """Start a run and return its handle."""
        return self._handed(self._next_id(flow.name), flow, args, kwargs, options)

    def handle(self, run_id: str) -> RunHandle[Any]:
        """Return a handle of a run that this body may not have started."""
        return RunHandle(ChildControl(self, None), run_id)

    async def _called(
        self,
        id_: str,
        flow: Workflow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
    ) -> Any:
        command = self._command(id_, flow, args, kwargs, options, detached=False)
        ended = self._loop.create_future()
        # At once: a run may be found to have ended as it is started.
        command.waiters.append(ended)
        await self._begun(command)
        return await self._answer(id_, ended)

    async def _handed(
        self,
        id_: str,
        flow: Workflow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
    ) -> RunHandle[Any]:
        command = self._command(id_, flow, args, kwargs, options, detached=True)
        await self._begun(command)
        return RunHandle(ChildControl(self, command), command.run_id)

    def _command(
        self,
        id_: str,
        flow: Workflow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
        *,
        detached: bool,
    ) -> ChildCommand:
        given = None
        run_id = options.id
        if id_ not in self._recorded and not self._loop.evicted:
            what = f"the arguments of {id_!r} of run {self._run.id!r}"
            given = flow.signature.encode_input(args, kwargs, what=what, limit=self._limit)
            run_id = None if run_id is None else check_id(run_id, what="a run's id")
        slot = Slot(
            id=id_,
            kind=SlotKind.CHILD,
            name=run_id or child_id(self._run.id, id_, self._run.epoch),
            since=self._now(),
            detached=detached,
        )
        return ChildCommand(
            id=id_,
            slot=slot,
            flow=flow,
            given=given,
            options=options,
            future=self._loop.create_future(),
            waiters=[],
        )

    async def _begun(self, command: ChildCommand) -> None:
        if self._loop.evicted:
            await Never()
        self._issue(command)
        await self._answer(command.id, command.future)

    # -- entries ----------------------------------------------------------------------------------

    def resolve(self, entry: Entry, command: ChildCommand) -> None:
        """Let the body know that a child was started, or could not be, or how it ended."""
        if entry.kind is EntryKind.OUTCOME:
            self._end(entry, command)
        elif entry.error is not None:
            command.future.set_exception(self._raised(entry, entry.error))
        else:
            command.started = True
            # What is recorded counts: the parent may be of another epoch by now.
            command.slot = msgspec.structs.replace(command.slot, name=entry.value["run"])
            command.stamp = entry.value.get("stamp", "")
            command.future.set_result(None)

    def _end(self, entry: Entry, command: ChildCommand) -> None:
        value: Any = None
        error: Exception | None = None
        if entry.error is not None:
            error = self._raised(entry, entry.error)
        else:
            what = f"the result of {entry.id!r}, run {command.run_id!r}"
            try:
                value = decode(entry.value, command.flow.signature.returns, what=what)
            except ValidationError as mistake:
                error = mistake
        command.outcome = (value, error)
        for waiter in command.waiters:
            if not waiter.done() and error is not None:
                waiter.set_exception(error)
            elif not waiter.done():
                waiter.set_result(value)
        command.waiters.clear()

    def _raised(self, entry: Entry, failure: Failure) -> Exception:
        error = decode_exception(failure, run_id=self._run.id)
        # If the parent fails with it, it is this call where it failed.
        self._keep_error(error, msgspec.structs.replace(failure, step=entry.id))
        return error

    # -- what handles ask -------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The id of the parent."""
        return self._run.id

    async def result(self, command: ChildCommand, timeout: float | None) -> Any:
        """Wait for the end of a started child; whoever cancels the wait cancels the run."""
        if command.outcome is None:
            await self._until_end(command, timeout)
        if command.outcome is None:
            raise TimeoutError(
                f"run {command.run_id!r}, child of run {self._run.id!r}, has not ended within "
                f"{timeout:g} s; it goes on"
            )
        value, error = command.outcome
        if error is not None:
            raise error
        return value

    async def _until_end(self, command: ChildCommand, timeout: float | None) -> None:
        if self._loop.evicted:
            await Never()
        ended = self._loop.create_future()
        ended.add_done_callback(_retrieve)
        command.waiters.append(ended)
        try:
            # Unlike `wait_for` this leaves the run alone when the time is up.
            await asyncio.wait([ended], timeout=timeout)
        except asyncio.CancelledError:
            self.ask(DispatchKind.ABANDON, command, None)
            raise
        finally:
            if ended in command.waiters:
                command.waiters.remove(ended)

    def ask(self, kind: DispatchKind, command: ChildCommand, reason: str | None) -> None:
        """Have a child told to end, if it hasn't; a replay has had that done before.

        Raises:
            ValidationError: The reason is not text that can be stored.
            PayloadTooLarge: It is too long.
        """
        what = f"the reason given for run {command.run_id!r}"
        encoded = encode(reason, what=what, limit=min(REASON_LIMIT, self._limit))
        decode(encoded, str | None, what=what)
        if command.outcome is None:
            self._request((kind, command.run_id, encoded))


def _retrieve(ended: asyncio.Future[Any]) -> None:
    # `asyncio.wait` doesn't look at it, and a child's error is raised from its outcome.
    if not ended.cancelled():
        ended.exception()


class ChildControl(RunControl):
    """What a handle in a body can do: wait and cancel. In a step it is a handle like any other.

    Args:
        children: The body's.
        command: The call that started the run; None if the body didn't.
    """

    def __init__(self, children: Children, command: ChildCommand | None) -> None:
        self._children = children
        self._command = command

    async def result_of(self, run_id: str, timeout: float | None) -> Any:
        if body_runtime() is None:
            return await current_control().result_of(run_id, timeout)
        if self._command is None:
            self._refuse("result()", run_id)
        return await self._children.result(self._command, timeout)

    async def cancel_run(self, run_id: str, reason: str | None) -> None:
        if body_runtime() is None:
            return await current_control().cancel_run(run_id, reason)
        if self._command is None:
            self._refuse("cancel()", run_id)
        return self._children.ask(DispatchKind.CANCEL, self._command, reason)

    async def start_run(
        self, flow: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: StartOptions
    ) -> RunHandle[Any]:
        return await self._outside("start()", "").start_run(flow, args, kwargs, options)

    async def get_run(self, run_id: str) -> WorkflowRun:
        return await self._outside("get()", run_id).get_run(run_id)

    async def load_payload(self, run_id: str, value: Any) -> Any:
        return await self._outside("load()", run_id).load_payload(run_id, value)

    async def get_status(self, run_id: str) -> Status:
        return await self._outside("status()", run_id).get_status(run_id)

    async def wait_run(self, run_id: str, timeout: float | None) -> WorkflowRun:
        return await self._outside("wait()", run_id).wait_run(run_id, timeout)

    async def resume_run(self, run_id: str, payload: Any, name: str | None) -> None:
        await self._outside("resume()", run_id).resume_run(run_id, payload, name)

    async def send_message(
        self, run_id: str, channel: str, payload: Any, message_id: str | None
    ) -> None:
        control = self._outside("send()", run_id)
        await control.send_message(run_id, channel, payload, message_id)

    async def terminate_run(self, run_id: str, reason: str | None) -> None:
        await self._outside("terminate()", run_id).terminate_run(run_id, reason)

    async def pause_run(self, run_id: str, reason: str | None) -> None:
        await self._outside("pause()", run_id).pause_run(run_id, reason)

    async def unpause_run(self, run_id: str) -> None:
        await self._outside("unpause()", run_id).unpause_run(run_id)

    async def rewind_run(self, run_id: str, step: Any) -> None:
        await self._outside("rewind()", run_id).rewind_run(run_id, step)

    async def retry_run(self, run_id: str) -> None:
        await self._outside("retry()", run_id).retry_run(run_id)

    async def execute_run(self, run_id: str) -> Status:
        return await self._outside("execute()", run_id).execute_run(run_id)

    def _outside(self, method: str, run_id: str) -> RunControl:
        if body_runtime() is not None:
            self._refuse(method, run_id)
        return current_control()

    def _refuse(self, method: str, run_id: str) -> NoReturn:
        whose = "its child" if self._command is not None else "run"
        raise InvalidState(
            f"run {self._children.run_id!r} called {method} of {whose} {run_id!r} in its body, "
            "which would be I/O: call it in a @step, which may take the handle as an argument",
            run_id=self._children.run_id,
        )

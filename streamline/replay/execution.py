"""`Execution`: one run's body on its loop. Entries go in, commands and an outcome come out.

A pure function of (definition, input, journal so far), taken one entry at a time; live and replay
do exactly the same. It does no I/O, reads no clock and knows no store.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import itertools
import logging
import random
from collections.abc import Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, NoReturn

from streamline.codec import (
    Dropped,
    Failure,
    decode,
    decode_exception,
    encode,
    kept,
    type_reference,
)
from streamline.definitions import Step, Workflow
from streamline.errors import PayloadTooLarge, ValidationError
from streamline.model import Entry, EntryKind, Input, Run, Slot, SlotKind
from streamline.replay.children import Children, Request
from streamline.replay.commands import (
    ChildCommand,
    Command,
    SlotCommand,
    StepCommand,
    TimerCommand,
    detach,
)
from streamline.replay.continuing import ContinueAsNew, outcome_of
from streamline.replay.deadline import Deadline
from streamline.replay.divergence import diverged, retyped
from streamline.replay.eviction import Never
from streamline.replay.forbidden import stuck_error
from streamline.replay.loop import ReplayLoop
from streamline.replay.opened import OpenCommands
from streamline.replay.outcome import Failed, Outcome
from streamline.replay.outputs import Outputs
from streamline.replay.timers import Timers
from streamline.runtime import BodyRuntime, enter_runtime

_log = logging.getLogger(__name__)

CANCEL = "cancel"  # the id of an entry by which a cancel reaches the body; it answers no command
_ANSWERS = {EntryKind.ATTEMPT: EntryKind.STEP}
_CALLS = frozenset({EntryKind.STEP, EntryKind.CHILD})
_AT_ONCE = 100  # entries; as long as the body's loop runs, the garbage collector doesn't


class Execution(BodyRuntime):
    """The body of one run.

    Args:
        run: The run as claimed; its journal is not read here.
        workflow: The definition whose body runs.
        limit: How many bytes a payload may have that is kept in the document: the context, what a
            wait asks with.
        recorded: All entries that will be replayed; which ids are recorded is known beforehand.
    """

    def __init__(
        self, run: Run, workflow: Workflow[..., Any], *, limit: int, recorded: Iterable[Entry] = ()
    ) -> None:
        self.run = run
        self.workflow = workflow
        self.open: OpenCommands = OpenCommands()
        self.new_patches: list[str] = []
        self.position: int = 0
        self.cancels: int = 0
        self.cancel_reason: str | None = None
        self.step_errors: list[tuple[BaseException, Failure]] = []
        self.requests: list[Request] = []
        """What children are to be told, and isn't written yet."""
        self._input: Input | None = run.input
        self._limit = limit
        self._now = run.body_began_at
        self._loop = ReplayLoop(run.id, self, self._now)  # type: ignore[abstract]
        self._outputs = Outputs(run.id)
        self._context: dict[str, Any] = copy.deepcopy(run.input.context)
        self._main: asyncio.Task[Any] | None = None
        self._deadline = _deadline_of(run, workflow)
        self._timers = Timers(self._deadline)
        self._outcome: Outcome | None = None
        self._continued = False
        self._replaying = False
        self._rng: random.Random | None = None
        self._made_children: Children | None = None
        recorded = [*recorded]
        self._recorded = {entry.id for entry in recorded if entry.kind in _CALLS}
        self._patches = {entry.id: True for entry in recorded if entry.kind is EntryKind.PATCH}

    # -- driving ----------------------------------------------------------------------------------

    def start(self, *, replaying: bool = False) -> None:
        """Begin the body and run it until it stands still.

        Raises:
            ValidationError: The stored input doesn't fit the function.
        """
        args, kwargs = self.workflow_input()
        if self._input is not None and isinstance(kept(self._input.payload), Dropped):
            self._input = None
        self._replaying = replaying
        # An empty one: context variables of whoever drives this are not the same on a replay.
        self._main = self._loop.create_task(
            self._body(args, kwargs), name="main", context=contextvars.Context()
        )
        self._turn()
        self._replaying = False

    def replay(self, entries: Iterable[Entry]) -> None:
        """Apply entries that are recorded already.

        Raises:
            NonDeterminism: One of them doesn't answer what the body asks for.
        """
        left = iter(entries)
        while some := [*itertools.islice(left, _AT_ONCE)]:
            with self._loop.entered():
                for entry in some:
                    self._replaying = True
                    self.apply(entry)
            self.open.drop_answered()  # what is answered need not be kept any longer
        self._replaying = False

    def apply(self, entry: Entry) -> None:
        """Apply one entry and run the body until it stands still.

        Raises:
            NonDeterminism: It doesn't answer what the body asks for.
        """
        self._now = entry.at
        self._loop.advance(entry.at)
        if entry.kind is EntryKind.ATTEMPT:
            self._expect(entry)
        elif entry.kind is EntryKind.MESSAGE and entry.id == CANCEL:
            self._cancel(entry)
        elif entry.kind is not EntryKind.PATCH:
            command = self._expect(entry)
            # A child that is started is asked for still: how it ends.
            if entry.kind is not EntryKind.CHILD or entry.error is not None:
                self.open.remove(entry.id)
            self._resolve(entry, command)
        self.position += 1

    @property
    def outcome(self) -> Outcome | None:
        """How the body ended; None while it goes on."""
        return self._outcome

    def evict(self) -> None:
        """Drop the body; nothing that its `finally` blocks ask for happens."""
        # They refer to the tasks, which are to be freed now, not when the collector comes.
        self._main = None
        self.open.clear()
        self.step_errors.clear()
        self._timers.clear()
        self._loop.evict()
        self._made_children = None  # which refers back to this

    def _turn(self) -> None:
        while True:
            try:
                self._loop.turn()
                break
            except SystemExit:
                # asyncio lets it out of the loop in mid-turn; the task that raised it holds it too.
                # A KeyboardInterrupt goes through: that is somebody who wants to end the process.
                continue
        self._settle()

    def _settle(self) -> None:
        """Note the outcome if the body has ended, and fail one that nothing can wake."""
        main = self._main
        if main is None or self._outcome is not None:
            return
        if not main.done():
            if not self.open or (len(self.open) == 1 and self._timers.deadline_id in self.open):
                self._outcome = Failed(stuck_error(self.run.id), stuck=True)
        else:
            self._outcome = outcome_of(main, self.run.id, called=self._continued)

    async def _body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        body = self.workflow.fn(*args, **kwargs)
        try:
            return await (body if self._deadline is None else self._deadline.bound(body))
        except Exception as error:
            if self.workflow.on_failure is None:
                raise
            await self.workflow.on_failure(error)
            raise

    # -- entries ----------------------------------------------------------------------------------

    def _expect(self, entry: Entry) -> Command:
        command = self.open.get(entry.id)
        if command is not None and command.kind is _ANSWERS.get(entry.kind, entry.kind):
            return command
        asked = ("the end of the run",) if self._outcome else tuple(self.open) or ("nothing",)
        raise diverged(self.run, entry, self.position, command, asked)

    def _resolve(self, entry: Entry, command: Command) -> None:
        if entry.context:
            # Copied: what the body does to what it finds there must not reach the journal.
            self._context.update(copy.deepcopy(entry.context))
        if isinstance(command, TimerCommand):
            self._timers.forget(command.handle)
            self._loop.fire(command.handle)
        elif isinstance(command, StepCommand):
            self._resolve_step(entry, command)
        elif isinstance(command, SlotCommand):
            self._resolve_slot(entry, command)
        elif isinstance(command, ChildCommand):
            self._children.resolve(entry, command)
        self._turn()

    def _resolve_step(self, entry: Entry, command: StepCommand) -> None:
        if entry.error is not None:
            error = decode_exception(entry.error, run_id=self.run.id)
            self.step_errors.append((error, entry.error))
            command.future.set_exception(error)
            return
        returns = command.step.signature.returns
        what = f"the recorded result of step {entry.id!r} of run {self.run.id!r}"
        try:
            value = decode(entry.value, returns, what=what)
        except ValidationError as error:
            raise retyped(self.run, entry, self.position, error) from error
        self._outputs.add(entry.id, entry.value, returns)
        command.future.set_result(value)

    def _resolve_slot(self, entry: Entry, command: SlotCommand) -> None:
        what = f"the message for {entry.id!r} of run {self.run.id!r}"
        try:
            command.future.set_result(decode(entry.value, command.type, what=what))
        except ValidationError as error:
            command.future.set_exception(error)

    def _cancel(self, entry: Entry) -> None:
        self.cancels += 1
        self.cancel_reason = entry.value
        if self._main is not None:
            self._main.cancel(entry.value)
            self._turn()

    # -- commands ---------------------------------------------------------------------------------

    def call_step(
        self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        if self._loop.evicted:
            return Never()
        return self._perform_step(self.open.next_id(step.name), step, args, kwargs)

    async def _perform_step(
        self, id_: str, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._loop.evicted:
            await Never()
        if id_ not in self._recorded:
            args = tuple([detach(value) for value in args])
            if kwargs:
                kwargs = {name: detach(value) for name, value in kwargs.items()}
        future = self._loop.create_future()
        self.open.issue(StepCommand(id=id_, step=step, args=args, kwargs=kwargs, future=future))
        try:
            return await future
        except asyncio.CancelledError:
            self._withdraw_unanswered(id_, future)
            raise

    def call_child(
        self, flow: Workflow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Any
    ) -> Coroutine[Any, Any, Any]:
        return Never() if self._loop.evicted else self._children.call(flow, args, kwargs, options)

    def start_child(
        self, flow: Workflow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Any
    ) -> Coroutine[Any, Any, Any]:
        return Never() if self._loop.evicted else self._children.start(flow, args, kwargs, options)

    def child_handle(self, run_id: str) -> Any:
        return self._children.handle(run_id)

    @property
    def _children(self) -> Children:
        # Made when they are asked for: most bodies have none.
        if self._made_children is None:
            self._made_children = Children(
                self.run,
                self._loop,
                limit=self._limit,
                recorded=self._recorded,
                next_id=self.open.next_id,
                issue=self.open.issue,
                answer=self._answer,
                now=self.now,
                request=self._request,
                keep_error=lambda error, failure: self.step_errors.append((error, failure)),
            )
        return self._made_children

    def _request(self, request: Request) -> None:
        if not self.replaying:  # else it was made before
            self.requests.append(request)

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
        if self._loop.evicted:
            return Never()
        id_ = self.open.next_id(f"{kind.value}:{name}" if name else kind.value)
        slot = Slot(
            id=id_,
            kind=kind,
            name=name or id_,
            since=self._now,
            reason=reason,
            data=encode(data, what=f"the data of {id_!r}", limit=self._limit),
            type=type_reference(type),
            deadline=None if timeout is None else self._now + timedelta(seconds=timeout),
        )
        return self._await_message(slot, type)

    async def _await_message(self, slot: Slot, type: Any) -> Any:
        if self._loop.evicted:
            await Never()
        future = self._loop.create_future()
        self.open.issue(SlotCommand(id=slot.id, slot=slot, type=type, future=future))
        return await self._answer(slot.id, future)

    async def _answer(self, id_: str, future: asyncio.Future[Any]) -> Any:
        try:
            return await future
        except asyncio.CancelledError:
            self._withdraw_unanswered(id_, future)
            raise

    def _withdraw_unanswered(self, id_: str, future: asyncio.Future[Any]) -> None:
        if future.cancelled() and not self._loop.evicted:
            self.open.withdraw(id_)

    # -- the loop's owner -------------------------------------------------------------------------

    def timer_armed(self, handle: asyncio.TimerHandle) -> None:
        self.open.issue(self._timers.arm(handle, self.open.next_id))

    def timer_cancelled(self, handle: asyncio.TimerHandle) -> None:
        id_ = self._timers.forget(handle)
        if id_ is not None:
            self.open.withdraw(id_)

    def context_given(self, context: contextvars.Context) -> None:
        # A step that doesn't find the runtime would run in the body. A context that is entered
        # already belongs to a task that has it.
        with contextlib.suppress(RuntimeError):
            context.run(enter_runtime, self)

    def loop_failed(self, message: str, error: BaseException | None) -> None:
        if self._replaying:
            return
        _log.warning("run %r: %s", self.run.id, message, exc_info=error)

    # -- what the body asks (BodyRuntime) ---------------------------------------------------------

    @property
    def replaying(self) -> bool:
        return self._replaying or self._loop.evicted

    @property
    def context(self) -> Mapping[str, Any]:
        return MappingProxyType(self._context)

    def set_context(self, changes: Mapping[str, Any]) -> None:
        if self._loop.evicted:
            return
        what = f"the context of run {self.run.id!r}"
        self._context.update(encode(dict(changes), what=what, limit=self._limit))

    def output_of(self, step_id: str) -> Any:
        return self._outputs.of(step_id)

    def workflow_input(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        what = f"the input of run {self.run.id!r} of workflow {self.run.workflow!r}"
        if self._input is None:
            raise PayloadTooLarge(
                f"{what} is too large to be asked for again; pass it on as an argument",
                run_id=self.run.id,
            )
        return self.workflow.signature.decode_input(self._input, what=what)

    def now(self) -> datetime:
        return self._now

    @property
    def rng(self) -> random.Random:
        if self._rng is None:
            # No id holds a NUL: another run's seed is another.
            later = "" if self.run.generation == 1 else f"\0{self.run.generation}"
            self._rng = random.Random(self.run.id + later)
        return self._rng

    def patched(self, patch_id: str) -> bool:
        if patch_id not in self._patches:
            self._patches[patch_id] = not self._replaying
            if not self.replaying:
                self.new_patches.append(patch_id)
        return self._patches[patch_id]

    def continue_as_new(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        what = f"the arguments that run {self.run.id!r} of {self.run.workflow!r} continues with"
        given = self.workflow.signature.encode_input(args, kwargs, what=what, limit=self._limit)
        self._continued = True
        raise ContinueAsNew(given)


def _deadline_of(run: Run, workflow: Workflow[..., Any]) -> Deadline | None:
    if workflow.timeout is None:
        return None
    return Deadline(workflow.timeout, run.began_at.timestamp(), f"run {run.id!r} of {workflow!r}")

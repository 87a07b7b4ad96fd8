"""`Nursery`: makes the children of one run durable, and finds out what became of them.

What it finds becomes facts, which the driver applies and commits as those of steps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from streamline.codec import encode_exception
from streamline.errors import (
    DataCorruption,
    ErrorCode,
    RunNotFound,
    ServerUnavailable,
    StreamlineError,
)
from streamline.model import (
    OUTPUT,
    Entry,
    EntryKind,
    Message,
    MessageKind,
    Parent,
    PostResult,
    Run,
    Status,
)
from streamline.outbox import cancel_id, incarnation, own_copy, stamp
from streamline.replay import ChildCommand, Execution
from streamline.store import Spill
from streamline.worker.children import ends_of, untold
from streamline.worker.inbox import Inbox
from streamline.worker.services import Services

T = TypeVar("T")
# Those that aren't ours come of options such as `delay="soon"`.
_REFUSALS = (StreamlineError, ValueError, TypeError, ArithmeticError)
LOOK_AGAIN = 0.05
"""Seconds between looks at an end that isn't durable yet."""


class Persist(Protocol):
    """Asks the store, through outages; raises `LeaseLost` once the claim is lost."""

    def __call__(self, verb: Callable[[], Awaitable[T]], /) -> Awaitable[T]: ...


class Nursery:
    """The children of one run, as far as its driver has to do with them.

    Args:
        services: The worker's.
        facts: Where facts go.
        persist: The driver's way of asking the store.
    """

    def __init__(self, services: Services, facts: deque[Entry], persist: Persist) -> None:
        self._services = services
        self._spill = Spill(services.store)
        self._facts = facts
        self._persist = persist

    async def start(self, run: Run, inbox: Inbox, calling: Sequence[ChildCommand]) -> None:
        """Make children durable; that they are is a fact, and so is an end that is found."""
        start = Start(run, inbox, self._services)
        found = await asyncio.gather(*(self._persist(partial(start, each)) for each in calling))
        for facts in found:
            self._facts.extend(facts)

    async def hear(self, body: Execution, inbox: Inbox) -> None:
        """Look for ends that a replayed body waits for, in case they were told before a rewind."""
        if waited_for := untold(body, inbox):
            ids = [child.run_id for child in waited_for]
            ended = await self._persist(lambda: self._services.store.load_ended(ids))
            at_hand = [await self._persist(partial(with_output, self._spill, run)) for run in ended]
            self._facts.extend(ends_of(at_hand, waited_for, self._services.clock.now()))

    async def gave_up_orphan(self, run: Run) -> bool:
        """Cancel a child that has recorded nothing and that nobody wants; returns whether it was.

        Whoever gave it up found no run to tell: it was created late, by a worker that stood still
        while its parent went on elsewhere, or was terminated.
        """
        called_by = run.parent
        if called_by is None or run.rev or run.followers:
            return False
        store = self._services.store
        parent = await self._persist(
            lambda: store.load_run(called_by.run, journal=False, inbox=False)
        )
        if not _is_orphan(run.id, called_by, parent):
            return False
        # The message that the parent would have sent, or has sent by now: it counts once.
        message = Message(
            id=cancel_id(called_by.run if parent is None else incarnation(parent)),
            kind=MessageKind.CANCEL,
            at=self._services.clock.now(),
            payload=f"run {called_by.run!r}, which called it, has ended or given it up",
        )
        return await self._persist(lambda: store.post(run.id, message)) is PostResult.POSTED


async def with_output(spill: Spill, run: Run) -> Run:
    """Return an ended run with its output at hand, to be kept with another run."""
    output = await spill.load(run.output, run.id, OUTPUT)
    return msgspec.structs.replace(run, output=own_copy(output))


def _is_orphan(run_id: str, called_by: Parent, parent: Run | None) -> bool:
    gone = parent is None or parent.epoch != called_by.epoch
    if parent is not None and not gone and not parent.status.ended:
        # What it calls shows in its document before the child is created, until it hears the end.
        call = (called_by.slot, run_id)
        return all((slot.id, slot.name) != call for slot in parent.awaiting)
    if called_by.detached:
        return not gone and parent is not None and parent.status is Status.CANCELLED
    return gone or parent is None or parent.status.ended


class Start:
    """Starts children of one run.

    Args:
        run: The parent.
        inbox: Its messages; one of them may tell of the end of a child whose start got lost.
        services: The worker's.
    """

    def __init__(self, run: Run, inbox: Inbox, services: Services) -> None:
        self._run = run
        self._told = inbox.outcomes()
        self._services = services

    async def __call__(self, command: ChildCommand) -> list[Entry]:
        """Make a child durable; returns that it is started, or why not, and its end if it has one.

        Raises:
            ServerUnavailable: Try again.
        """
        if command.run_id in self._told and await self._is_gone(command.run_id):
            # It ran to its end and has expired: to start it now would be to start it twice. While
            # it is there the start tells whether it was this call's, or an earlier one's.
            return [self._started(command, "")]
        assert command.given is not None
        options = msgspec.structs.replace(command.options, id=command.run_id)
        parent = Parent(
            run=self._run.id,
            slot=command.id,
            code=self._run.code,
            epoch=self._run.epoch,
            detached=command.slot.detached,
        )
        try:
            child = await self._services.start_child(command.flow, command.given, options, parent)
        except ServerUnavailable:
            raise
        except _REFUSALS as error:
            code = error.code if isinstance(error, StreamlineError) else ErrorCode.VALIDATION_ERROR
            failure = encode_exception(error, code=code)
            return [self._entry(command, EntryKind.CHILD, error=failure)]
        end = [await self._end_of(command, child)] if child.status.ended else []
        return [self._started(command, stamp(child)), *end]

    async def _is_gone(self, run_id: str) -> bool:
        try:
            run = await self._services.store.load_run(run_id, journal=False, inbox=False)
        except DataCorruption:  # it was set aside, and that is what it has told
            return True
        return run is None

    async def _end_of(self, command: ChildCommand, child: Run) -> Entry:
        """Return the end of a run that had ended when it was called; nobody may tell of it."""
        while True:
            if found := await self._services.store.load_ended([child.id]):
                at_hand = await with_output(Spill(self._services.store), found[0])
                return ends_of([at_hand], [command], self._services.clock.now())[0]
            followed = await self._services.store.follow(child.id, self._run.id)
            if followed is None:
                error = RunNotFound(
                    f"run {child.id!r} had ended and was deleted before run {self._run.id!r}, "
                    "which called it, could take its result",
                    run_id=child.id,
                )
                failure = encode_exception(error, code=error.code)
                return self._entry(command, EntryKind.OUTCOME, error=failure)
            await asyncio.sleep(LOOK_AGAIN)

    def _started(self, command: ChildCommand, which: str) -> Entry:
        value: dict[str, object] = {"run": command.run_id}
        if which:
            value["stamp"] = which
        if command.slot.detached:
            value["detached"] = True
        return self._entry(command, EntryKind.CHILD, value=value)

    def _entry(self, command: ChildCommand, kind: EntryKind, **fields: object) -> Entry:
        at = self._services.clock.now()
        # The session writes it under the claim of the day.
        return msgspec.structs.replace(Entry(id=command.id, kind=kind, at=at, fence=0), **fields)

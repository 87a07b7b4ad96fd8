"""`Courier`: delivers what runs have to tell each other, at least once.

A commit that ends a child, or gives one up, leaves a dispatch in the run's outbox. Whoever wrote it
sends it on at once; if that process dies, others find it when it is due. Messages have ids of their
own, and who is told twice hears it once. Nobody needs the other's code for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any

from streamline import tasks
from streamline.clock import Alarm
from streamline.codec import Failure, LargePayload, encode_exception
from streamline.errors import DataCorruption, RunCancelled
from streamline.model import (
    OUTPUT,
    Dispatch,
    DispatchKind,
    Message,
    MessageKind,
    Notice,
    PostResult,
    Run,
    Status,
)
from streamline.outbox import cancel_id, incarnation, outcome_failure, outcome_id, own_copy
from streamline.store import RunStore, Spill

_log = logging.getLogger(__name__)

POLL = timedelta(seconds=2)
"""How often to look for what a dead process left in outboxes."""
RETRY = timedelta(seconds=5)
"""When to try again what a full mailbox refused."""
BATCH = 100
SEEN = 1 << 62
"""More messages than a worker can know of: it will look."""
GRACE = 5.0
"""Seconds that deliveries get when the worker stops."""


class Courier:
    """The telling half of a worker.

    Args:
        store: Where the runs are.
        codes: Returns the codes of the runs whose outboxes are looked after.
        tell: Brings a run that is parked in this process a message, and lets it go on; returns
            False if it can't. A message whose id is not new may come twice.
        notify: Called with a hint for each run that was told something.
        on_cancelled: Called with each run that could be ended at once.
        polls: False where nothing is written behind our back (in memory): then nothing is polled.
    """

    def __init__(
        self,
        store: RunStore,
        codes: Callable[[], Sequence[str]],
        *,
        tell: Callable[[str, Message], Awaitable[bool]],
        notify: Callable[[Notice], None],
        on_cancelled: Callable[[Run], None],
        polls: bool,
    ) -> None:
        self._store = store
        self._spill = Spill(store)
        self._codes = codes
        self._tell = tell
        self._notify = notify
        self._on_cancelled = on_cancelled
        self._polls = polls
        self._errands: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._waiting = False

    @property
    def busy(self) -> bool:
        """Whether something is being delivered."""
        return bool(self._errands)

    @property
    def idle(self) -> bool:
        """Whether it waits for time."""
        return self._waiting and not self._wake.is_set()

    # -- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver, for ever, what nobody else has delivered."""
        everything = True  # whoever wrote it may be the process in whose place we are
        while True:
            self._wake.clear()
            due: datetime | None = None
            try:
                due = await self._sweep(everything=everything)
                everything = False
            except Exception as error:
                # Whatever it is: were this task to end, some runs would never hear of others.
                _log.warning("can't deliver what runs have to tell each other: %s", error)
                due = self._store.clock.now() + RETRY
            await self._sleep(due)

    async def finish(self) -> None:
        """Wait until what is being delivered is."""
        while self._errands:
            await asyncio.wait(self._errands)

    async def stop(self) -> None:
        """Finish, but not for long: other workers see to what is left."""
        if self._errands:
            await asyncio.wait(self._errands, timeout=GRACE)
        await tasks.end(self._errands)

    def kill(self) -> None:
        """Drop everything, as if the process had died."""
        for errand in self._errands:
            errand.cancel()

    async def _sleep(self, due: datetime | None) -> None:
        clock = self._store.clock
        if self._polls:
            poll = clock.now() + POLL
            due = poll if due is None else min(due, poll)
        alarm: Alarm | None = None if due is None else clock.call_at(due, self._wake.set)
        self._waiting = True
        try:
            await self._wake.wait()
        finally:
            self._waiting = False
            if alarm is not None:
                alarm.cancel()

    def notice(self) -> None:
        """Take a hint that some run changed. Where changes are polled for it is not needed."""
        if not self._polls:
            self._wake.set()

    # -- delivering -------------------------------------------------------------------------------

    def send(self, run: Run, dispatches: Sequence[Dispatch]) -> None:
        """Deliver, soon, what a commit has just put into a run's outbox.

        Args:
            run: The run as it is since that commit.
            dispatches: What it has to tell.
        """
        self._spawn(self._send_safely(run, dispatches))

    async def deliver(self, run_id: str) -> bool:
        """Deliver what is in a run's outbox, now; returns whether nothing is left.

        Trouble is logged, not raised: what isn't delivered stays there, and workers see to it.
        """
        try:
            run = await self._head(run_id)
            return run is None or not run.outbox or await self._send_all(run, run.outbox)
        except Exception as error:
            _log.warning("can't deliver what run %r has to tell yet: %s", run_id, error)
            return False

    async def _send_safely(self, run: Run, dispatches: Sequence[Dispatch]) -> None:
        try:
            await self._send_all(run, dispatches)
        except Exception as error:
            _log.warning("can't deliver what run %r has to tell yet: %s", run.id, error)
            self._wake.set()

    async def _sweep(self, *, everything: bool) -> datetime | None:
        """Deliver what is due; returns when something else will be."""
        now = self._store.clock.now()
        codes = self._codes()
        found = await self._store.load_outboxes(codes, BATCH) if codes else []
        for outbox in found:
            if outbox.due_at > now and not everything:
                return outbox.due_at
            try:
                # Leniently: the run itself may be one that can't be read.
                ended = await self._store.load_ended([outbox.run_id])
                run = ended[0] if ended else await self._head(outbox.run_id)
                if run is not None:
                    await self._send_all(run, outbox.dispatches)
            except Exception as error:
                _log.warning("can't deliver what run %r has to tell: %s", outbox.run_id, error)
                await self._store.settle_outbox(outbox.run_id, (), now + RETRY)
                self._wake.set()
        return now if len(found) == BATCH else None

    async def _send_all(self, run: Run, dispatches: Sequence[Dispatch]) -> bool:
        """Deliver, and take out of the outbox what was; returns whether all was."""
        sent: list[Dispatch] = []
        for start in range(0, len(dispatches), BATCH):
            batch = dispatches[start : start + BATCH]
            taken = await asyncio.gather(*(self._send(run, each) for each in batch))
            sent += [each for each, done in zip(batch, taken, strict=True) if done]
        again_at = self._store.clock.now() + RETRY
        await self._store.settle_outbox(run.id, sent, again_at)
        if len(sent) < len(dispatches):
            self._wake.set()
        return len(sent) == len(dispatches)

    async def _head(self, run_id: str) -> Run | None:
        return await self._store.load_run(run_id, journal=False, inbox=False)

    async def _send(self, run: Run, dispatch: Dispatch) -> bool:
        if dispatch.kind is not DispatchKind.OUTCOME:
            return await self._cancel(run, dispatch)
        if not run.status.ended:
            return True  # it was rewound since, and will tell of its next end
        failure = outcome_failure(run)
        payload = None
        if failure is None:
            try:
                payload = own_copy(await self._spill.load(run.output, run.id, OUTPUT))
            except DataCorruption as error:
                # It will not come back: who waits for it must not wait for ever.
                failure = encode_exception(error, code=error.code)
        id_ = outcome_id(run, dispatch)
        message = self._message(MessageKind.OUTCOME, id_, run.id, payload, failure)
        code = None if run.parent is None or run.parent.run != dispatch.to else run.parent.code
        # One that comes twice is dropped: the run waits for that end no more.
        # Nothing is to wait for a large payload that is being written.
        small = not isinstance(payload, LargePayload)
        told = small and await self._tell(dispatch.to, message)
        return told or await self._post(dispatch.to, message, code)

    async def _cancel(self, run: Run, dispatch: Dispatch) -> bool:
        child = await self._head(dispatch.to)
        if child is None or child.status.ended:
            return True
        if dispatch.kind is DispatchKind.ABANDON and (
            child.parent is None or child.parent.run != run.id
        ):
            return True  # it was there before, for others
        reason = dispatch.reason or f"by its parent, run {run.id!r}"
        error = RunCancelled(f"run {child.id!r} was cancelled: {reason}", run_id=child.id)
        if await self._store.cancel_unstarted(child.id, encode_exception(error, code=error.code)):
            self._spawn(self._tell_of_end(child.id))
            return True
        message = self._message(MessageKind.CANCEL, cancel_id(incarnation(run)), "", reason)
        return await self._post(child.id, message, child.code)

    async def _tell_of_end(self, run_id: str) -> None:
        """Tell of a run that was ended before it began, and let it tell others."""
        try:
            for run in await self._store.load_ended([run_id]):
                self._on_cancelled(run)
        except Exception as error:
            _log.warning("can't tell of the end of run %r: %s", run_id, error)
        await self.deliver(run_id)

    async def _post(self, run_id: str, message: Message, code: str | None) -> bool:
        result = await self._store.post(run_id, await self._spill.message(message, run_id))
        if result is not PostResult.POSTED:
            await self._spill.discard(message.payload, run_id)
        if result is PostResult.FULL:
            _log.warning("the mailbox of run %r is full; %s must wait", run_id, message.id)
        if result is PostResult.POSTED:
            now = self._store.clock.now()
            self._notify(
                Notice(run_id=run_id, code=code, status=Status.WAITING, due_at=now, inbox_seq=SEEN)
            )
        return result is not PostResult.FULL

    def _message(
        self, kind: MessageKind, id_: str, name: str, payload: Any, error: Failure | None = None
    ) -> Message:
        now = self._store.clock.now()
        return Message(id=id_, kind=kind, at=now, name=name, payload=payload, error=error)

    def _spawn(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

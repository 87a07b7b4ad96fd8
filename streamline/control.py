"""`Control`: what callers do with runs, on a store: start, ask, send, resume, cancel, wait."""

from __future__ import annotations

from typing import Any

from streamline.codec import (
    Limits,
    PayloadRef,
    decode,
    encode,
    encode_exception,
    lift,
    resolve_type,
)
from streamline.definitions import Registry
from streamline.delivery import Delivery, Letter, not_found
from streamline.documents import WorkflowRun
from streamline.errors import (
    InvalidState,
    PayloadTooLarge,
    RunAlreadyCompleted,
    RunCancelled,
    WorkflowNotFound,
)
from streamline.events import Event, EventBus
from streamline.handles import RunControl, RunHandle, StartOptions
from streamline.ids import check_id, check_name, new_id
from streamline.launcher import Launcher
from streamline.model import (
    OUTPUT,
    Message,
    MessageKind,
    PostResult,
    Run,
    Slot,
    SlotKind,
    Status,
)
from streamline.outbox import outcome_error
from streamline.rewinder import Rewinder
from streamline.store import RunStore, Spill
from streamline.waiters import Waiters
from streamline.worker import Worker

REASON_LIMIT = 16 * 1024
"""Bytes of a cancel's or a pause's reason: an inbox takes these however full it is."""


class Control(RunControl):
    """Implements what handles ask for.

    Args:
        store: Where the runs are.
        worker: Drives what `execute` asks for, and hears of messages at once.
        waiters: Who waits for ends.
        launcher: Who starts.
        registry: For the types of results.
        events: Who hears of retries.
        limits: How large payloads may be.
    """

    def __init__(
        self,
        store: RunStore,
        worker: Worker,
        waiters: Waiters,
        launcher: Launcher,
        registry: Registry,
        events: EventBus,
        limits: Limits,
    ) -> None:
        self._store = store
        self._worker = worker
        self._waiters = waiters
        self._launcher = launcher
        self._registry = registry
        self._events = events
        self._limits = limits
        self._spill = Spill(store)
        self._rewinder = Rewinder(store)
        self._delivery = Delivery(store, worker)

    # -- starting and asking ----------------------------------------------------------------------

    async def start_run(
        self, flow: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: StartOptions
    ) -> RunHandle[Any]:
        return RunHandle(self, await self._launcher.launch(flow, args, kwargs, options))

    async def get_run(self, run_id: str) -> WorkflowRun:
        return WorkflowRun.from_run(await self._load(run_id))

    async def get_status(self, run_id: str) -> Status:
        return (await self._load(run_id, head=True)).status

    async def load_payload(self, run_id: str, value: Any) -> Any:
        ref = lift(value)
        if not isinstance(ref, PayloadRef):
            return value
        return await self._spill.find(ref, await self._load(run_id))

    async def wait_run(self, run_id: str, timeout: float | None) -> WorkflowRun:
        await self._ended(run_id, timeout)
        return await self.get_run(run_id)

    async def result_of(self, run_id: str, timeout: float | None) -> Any:
        run = await self._ended(run_id, timeout)
        error = outcome_error(run)
        if error is not None:
            raise error
        return await self._decoded(run)

    async def _decoded(self, run: Run) -> Any:
        try:
            returns = self._registry.find_code(run.code).signature.returns
        except WorkflowNotFound:
            returns = Any  # a client that doesn't know the code gets plain data
        output = await self._spill.load(run.output, run.id, OUTPUT)
        return decode(output, returns, what=f"the output of run {run.id!r}")

    async def _ended(self, run_id: str, timeout: float | None) -> Run:
        if not self._worker.drivers.holds(run_id):
            run = await self._load(run_id, head=True)
            # Read again: an end that isn't durable yet may still be undone, and is waited for.
            if run.status.ended and (found := await self._store.load_ended([run_id])):
                return found[0]
        return await self._waiters.ended(run_id, timeout)

    async def _load(self, run_id: str, *, head: bool = False) -> Run:
        """Load a run; of one whose head is asked for, without journal and inbox."""
        run = await self._store.load_run(run_id, journal=not head, inbox=not head)
        if run is None:
            raise not_found(run_id)
        return run

    # -- messages ---------------------------------------------------------------------------------

    async def send_message(
        self, run_id: str, channel: str, payload: Any, message_id: str | None
    ) -> None:
        check_name(channel, what="a channel")
        if message_id is not None:
            check_id(message_id, what="a message's id")
        encoded = self._encoded(payload, f"the message to {channel!r} of run {run_id!r}")
        message = self._message(MessageKind.SEND, channel, encoded, message_id)

        def compose(run: Run) -> Letter:
            slots = [s for s in run.awaiting if s.kind is SlotKind.RECEIVE and s.name == channel]
            if slots:
                _check_type(encoded, slots[0], run_id)
            return Letter(message=message)

        result = await self._delivery.deliver(run_id, compose, fresh=message_id is None)
        if result is PostResult.ENDED:
            raise RunAlreadyCompleted(
                f"run {run_id!r} has ended; the message to {channel!r} was not stored",
                run_id=run_id,
            )
        if result is PostResult.FULL:
            raise PayloadTooLarge(
                f"the mailbox of run {run_id!r} is full; the message to {channel!r} was not "
                "stored. Send it again once the run has received some",
                run_id=run_id,
            )

    async def resume_run(self, run_id: str, payload: Any, name: str | None) -> None:
        encoded = self._encoded(payload, f"the payload for run {run_id!r}")
        if name is not None:
            check_id(name, what="a wait's name")

        def compose(run: Run) -> Letter:
            slot = _open_wait(run, name)
            _check_type(encoded, slot, run_id)
            message = self._message(MessageKind.RESUME, slot.id, encoded, None)
            return Letter(message=message, slot=slot.id)

        while True:
            result = await self._delivery.deliver(run_id, compose)
            if result in (PostResult.POSTED, PostResult.DUPLICATE):
                return
            if result is PostResult.FULL:
                raise PayloadTooLarge(
                    f"the mailbox of run {run_id!r} is full; it was not resumed", run_id=run_id
                )
            if result is PostResult.NO_SLOT:
                raise InvalidState(
                    f"run {run_id!r} is not waiting for what it was to be resumed with any more: "
                    "another resume or its timeout came first",
                    run_id=run_id,
                )
            # It has ended since we looked: the next look says how.

    def _encoded(self, payload: Any, what: str) -> Any:
        limits = self._limits
        return encode(payload, what=what, limit=limits.payload, inline=limits.inline)

    def _message(
        self, kind: MessageKind, name: str, payload: Any, message_id: str | None
    ) -> Message:
        return Message(
            id=message_id or new_id(),
            kind=kind,
            at=self._store.clock.now(),
            name=name,
            payload=payload,
        )

    # -- control ----------------------------------------------------------------------------------

    async def cancel_run(self, run_id: str, reason: str | None) -> None:
        self._check_reason(reason, run_id)
        error = _cancelled(run_id, reason)
        failure = encode_exception(error, code=error.code)
        begun = self._worker.seen(run_id) is not None
        if not begun and await self._store.cancel_unstarted(run_id, failure):
            await self._tell_cancelled(run_id, error)
            await self._worker.courier.deliver(run_id)
            return
        await self._command(run_id, MessageKind.CANCEL, reason)

    async def terminate_run(self, run_id: str, reason: str | None) -> None:
        self._check_reason(reason, run_id)
        error = _cancelled(run_id, reason)
        if await self._store.terminate(run_id, encode_exception(error, code=error.code)):
            self._worker.drivers.lose(run_id)
            await self._tell_cancelled(run_id, error)
            await self._worker.courier.deliver(run_id)
            return
        await self._load(run_id, head=True)

    async def _command(self, run_id: str, kind: MessageKind, reason: str | None) -> PostResult:
        letter = Letter(message=self._message(kind, "", reason, None))
        return await self._delivery.deliver_blindly(run_id, letter)

    async def _tell_cancelled(self, run_id: str, error: RunCancelled) -> None:
        """Tell of a run that was ended without its body."""
        self._waiters.suspect(run_id)
        run = await self._load(run_id, head=True)
        self._events.emit(
            Event(
                name="workflow:cancelled",
                at=run.ended_at or self._store.clock.now(),
                run_id=run_id,
                workflow=run.workflow,
                error=error,
            )
        )

    async def pause_run(self, run_id: str, reason: str | None) -> None:
        self._check_reason(reason, run_id)
        if await self._command(run_id, MessageKind.PAUSE, reason) is PostResult.ENDED:
            raise RunAlreadyCompleted(f"run {run_id!r} has ended; nothing to pause", run_id=run_id)

    def _check_reason(self, reason: str | None, run_id: str) -> None:
        what = f"the reason given for run {run_id!r}"
        limit = min(REASON_LIMIT, self._limits.payload)
        decode(encode(reason, what=what, limit=limit), str | None, what=what)

    async def unpause_run(self, run_id: str) -> None:
        if await self._store.unpause(run_id):
            self._delivery.tell_worker(run_id)
            return
        run = await self._load(run_id)
        raise InvalidState(
            f"run {run_id!r} is {run.status.value}, not paused; nothing to unpause", run_id=run_id
        )

    async def rewind_run(self, run_id: str, step: Any) -> None:
        step_id = check_id(getattr(step, "name", step), what="a step's id")
        run = await self._load(run_id)
        await self._rewinder.rewind(run, step_id)
        self._tell_of_retry(run)

    async def retry_run(self, run_id: str) -> None:
        run = await self._load(run_id)
        await self._rewinder.retry(run)
        self._tell_of_retry(run)

    def _tell_of_retry(self, run: Run) -> None:
        now = self._store.clock.now()
        self._events.emit(
            Event(name="workflow:retry", at=now, run_id=run.id, workflow=run.workflow)
        )
        self._delivery.tell_worker(run.id)

    async def execute_run(self, run_id: str) -> Status:
        # Before the claim: a run whose code isn't known here is left for others.
        self._registry.find_code((await self._load(run_id, head=True)).code)
        claimed = await self._store.claim_run(self._worker.scheduler.new_claim(), run_id)
        if claimed is None:
            return await self.get_status(run_id)
        return await self._worker.execute(claimed)


def _cancelled(run_id: str, reason: str | None) -> RunCancelled:
    because = f": {reason}" if reason else ""
    return RunCancelled(f"run {run_id!r} was cancelled{because}", run_id=run_id)


def _open_wait(run: Run, name: str | None) -> Slot:
    """Return the wait that a resume means.

    Raises:
        InvalidState: There is none, or several.
    """
    waits = [slot for slot in run.awaiting if slot.kind is SlotKind.WAIT]
    named = waits if name is None else [s for s in waits if name in (s.name, s.id)]
    if run.status.ended:
        raise RunAlreadyCompleted(
            f"run {run.id!r} has ended as {run.status.value}; it can't be resumed", run_id=run.id
        )
    if not named:
        wanted = "" if name is None else f" for {name!r}"
        raise InvalidState(
            f"run {run.id!r} is {run.status.value} and not waiting{wanted}; it can't be resumed",
            run_id=run.id,
        )
    if name is None and len(named) > 1:
        names = ", ".join(repr(slot.name) for slot in named)
        raise InvalidState(
            f"run {run.id!r} has several open waits ({names}); say which: resume(..., name=...)",
            run_id=run.id,
        )
    return named[0]


def _check_type(encoded: Any, slot: Slot, run_id: str) -> None:
    """Check a payload against the type a slot waits for, where that type is known here.

    Raises:
        ValidationError: It doesn't fit.
    """
    expected = resolve_type(slot.type)
    if expected is not None:
        decode(encoded, expected, what=f"the payload for {slot.name!r} of run {run_id!r}")

"""`SealedStore`: a store around another, whose payloads pass a `PayloadCodec` on their way.

Owns which fields are payloads, and their names to the codec. What the engine and the inner store
need stays readable: ids, names, types, codes, times, `meta` and `tags`, references to payloads kept
outside (whose content is sealed), and the context unless the codec seals it. None and an empty
context stay as they are. Runs are stored under codes of their own, `sealed/<code>`, so that a
worker without the codec leaves them alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from streamline.clock import Clock
from streamline.codec import Failure, PayloadCodec, PayloadRef
from streamline.errors import DataCorruption, ErrorCode, StreamlineError
from streamline.model import (
    Attempt,
    Claim,
    Commit,
    CommitResult,
    Continuation,
    Dispatch,
    Entry,
    Input,
    Message,
    Notice,
    Past,
    PostResult,
    Run,
    Slot,
    Status,
)
from streamline.outbox import GRACE, outcomes
from streamline.store.base import Outbox, Renewal, RunStore
from streamline.store.encoding import corruption, salvage, to_builtins, to_document
from streamline.store.sealed_payloads import open_payload, seal_payload
from streamline.store.transitions import same_creation

_MARK = "sealed/"
_TEXT = "(sealed)"
"""What stands where a text was: a wait's reason, an error's message."""
_FIRST = "past/input"
_ERROR_FIELDS = ("message", "traceback", "args", "attributes", "notes", "cause", "parts")

_change = msgspec.structs.replace


class SealedStore(RunStore):
    """Keeps runs in another store, sealed.

    Args:
        inner: Where the sealed runs are kept.
        codec: What seals and opens payloads.
    """

    def __init__(self, inner: RunStore, codec: PayloadCodec) -> None:
        self.inner = inner
        self.clock: Clock = inner.clock
        self._seal = Sealer(codec)
        self._open = Opener(codec)
        self._codec = codec

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    # -- starting ---------------------------------------------------------------------------------

    async def create_run(self, run: Run) -> tuple[Run, bool]:
        stored, created = await self.inner.create_run(self._seal.run(run))
        opened = self._open.run(stored)
        # Sealed anew, a creation that is tried again isn't the same to the inner store.
        return opened, created or same_creation(opened, run)

    async def replace_run(self, run: Run, *, rev: int, fence: int) -> bool:
        return await self.inner.replace_run(self._seal.run(run), rev=rev, fence=fence)

    # -- reading ----------------------------------------------------------------------------------

    async def load_run(
        self, run_id: str, *, journal: bool = True, inbox: bool = True
    ) -> Run | None:
        run = await self.inner.load_run(run_id, journal=journal, inbox=inbox)
        return None if run is None else self._open.run(run)

    async def load_archive(self, run_id: str, until: int) -> list[Entry]:
        entries = await self.inner.load_archive(run_id, until)
        return [self._open.entry(entry, run_id) for entry in entries]

    async def load_ended(self, run_ids: Sequence[str]) -> list[Run]:
        return [self._open_leniently(run) for run in await self.inner.load_ended(run_ids)]

    async def next_due(self, codes: Sequence[str]) -> datetime | None:
        return await self.inner.next_due(self._stored_codes(codes))

    # -- claims -----------------------------------------------------------------------------------

    async def claim_due(self, claim: Claim, codes: Sequence[str], limit: int) -> list[Run]:
        claimed = await self.inner.claim_due(claim, self._stored_codes(codes), limit)
        opened = [await self._open_claimed(run) for run in claimed]
        return [run for run in opened if run is not None]

    async def claim_run(self, claim: Claim, run_id: str) -> Run | None:
        claimed = await self.inner.claim_run(claim, run_id)
        return None if claimed is None else await self._open_claimed(claimed)

    def renew(self, worker: str, held: Mapping[str, int], lease: float) -> Renewal:
        return self.inner.renew(worker, held, lease)

    async def release(self, run_id: str, fence: int, *, faulty: bool = False) -> bool:
        return await self.inner.release(run_id, fence, faulty=faulty)

    async def claim_holders(self) -> list[str]:
        return await self.inner.claim_holders()

    async def expire_claims(self, worker: str) -> int:
        return await self.inner.expire_claims(worker)

    # -- advancing --------------------------------------------------------------------------------

    async def commit(self, commit: Commit) -> CommitResult:
        return await self.inner.commit(self._seal.commit(commit))

    async def heartbeat(self, run_id: str, fence: int, step: str, details: object) -> bool:
        sealed = self._seal.heartbeat(details, run_id, step)
        return await self.inner.heartbeat(run_id, fence, step, sealed)

    # -- messages and control ---------------------------------------------------------------------

    async def post(self, run_id: str, message: Message, *, slot: str | None = None) -> PostResult:
        return await self.inner.post(run_id, self._seal.message(message, run_id), slot=slot)

    async def post_to_parked(
        self, parked: Run, message: Message, claim: Claim, *, slot: str | None = None
    ) -> Run | None:
        sealed = self._seal.message(message, parked.id)
        run = await self.inner.post_to_parked(parked, sealed, claim, slot=slot)
        return None if run is None else self._open.run(run)

    async def cancel_unstarted(self, run_id: str, error: Failure) -> bool:
        return await self.inner.cancel_unstarted(run_id, self._seal.failure(error, run_id, "error"))

    async def terminate(self, run_id: str, error: Failure) -> bool:
        return await self.inner.terminate(run_id, self._seal.failure(error, run_id, "error"))

    async def unpause(self, run_id: str) -> bool:
        return await self.inner.unpause(run_id)

    async def rewind_run(self, run: Run, kept: Sequence[Entry]) -> bool:
        sealed = [self._seal.entry(entry, run.id) for entry in kept]
        return await self.inner.rewind_run(self._seal.run(_change(run, journal=[])), sealed)

    # -- payloads kept outside --------------------------------------------------------------------

    async def put_payload(
        self, run_id: str, ref: PayloadRef, place: str, data: bytes, *, fence: int | None = None
    ) -> None:
        sealed = seal_payload(self._codec, data, run_id, place)
        await self.inner.put_payload(run_id, ref, place, sealed, fence=fence)

    async def load_payload(self, run_id: str, ref: PayloadRef, place: str) -> bytes:
        sealed = await self.inner.load_payload(run_id, ref, place)
        return open_payload(self._codec, sealed, run_id, place)

    async def discard_payload(self, run_id: str, ref: PayloadRef) -> None:
        await self.inner.discard_payload(run_id, ref)

    async def sweep_payloads(self) -> int:
        return await self.inner.sweep_payloads()

    # -- telling other runs -----------------------------------------------------------------------

    async def follow(self, run_id: str, follower: str) -> Run | None:
        run = await self.inner.follow(run_id, follower)
        return None if run is None else self._open.run(run)

    async def load_outboxes(self, codes: Sequence[str], limit: int) -> list[Outbox]:
        found = await self.inner.load_outboxes(self._stored_codes(codes), limit)
        return [_change(o, dispatches=self._open.outbox(o.dispatches, o.run_id)) for o in found]

    async def settle_outbox(
        self, run_id: str, sent: Sequence[Dispatch], again_at: datetime
    ) -> None:
        await self.inner.settle_outbox(run_id, sent, again_at)

    # -- notices ----------------------------------------------------------------------------------

    def watch(self) -> AsyncIterator[Notice]:
        return self._notices(self.inner.watch())

    async def _notices(self, notices: AsyncIterator[Notice]) -> AsyncIterator[Notice]:
        async for notice in notices:
            yield notice if notice.code is None else _change(notice, code=_opened_code(notice.code))

    # -- codes, and what can't be opened ----------------------------------------------------------

    def _stored_codes(self, codes: Sequence[str]) -> list[str]:
        sealed = [_MARK + code for code in codes]
        return [*sealed, *codes] if self._codec.accepts_plain else sealed

    def _open_leniently(self, run: Run) -> Run:
        try:
            return self._open.run(run)
        except DataCorruption as error:
            document = to_document(run) | {"code": _opened_code(run.code)}
            return salvage(document, error, self.clock.now())

    async def _open_claimed(self, run: Run) -> Run | None:
        """Open a run just claimed; set it aside if that can't be done."""
        try:
            return self._open.run(run)
        except DataCorruption as error:
            told = tuple(outcomes(run, run.rev))
            failed = Commit(
                run_id=run.id,
                fence=run.fence,
                rev=run.rev,
                status=Status.FAILED,
                error=corruption(error),  # plain, for whoever has no key
                ended_at=self.clock.now(),
                outbox=told,
                outbox_due=self.clock.now() + GRACE if told else None,
            )
            await self.inner.commit(failed)
            return None


class Sealer:
    """Seals the payloads of what goes into a store."""

    def __init__(self, codec: PayloadCodec) -> None:
        self._codec = codec

    def run(self, run: Run) -> Run:
        """Return a run sealed."""
        return _change(
            run,
            code=_MARK + run.code,
            input=self._input(run.input, run.id),
            context=self.context(run.context, run.id, "context"),
            output=self._value(run.output, run.id, "output"),
            error=self.failure(run.error, run.id, "error"),
            journal=[self.entry(entry, run.id) for entry in run.journal],
            inbox=[self.message(message, run.id) for message in run.inbox],
            awaiting=[self._slot(slot, run.id) for slot in run.awaiting],
            attempts=[self._attempt(attempt, run.id) for attempt in run.attempts],
            past=None if run.past is None else self._past(run.past, run.id),
            outbox=[self._dispatch(each, run.id) for each in run.outbox],
        )

    def commit(self, commit: Commit) -> Commit:
        """Return a commit sealed."""
        run_id = commit.run_id
        changes: dict[str, Any] = {}
        if commit.entries:
            changes["entries"] = self._entries(commit.entries, run_id)
        if commit.archive:
            changes["archive"] = self._entries(commit.archive, run_id)
        if commit.awaiting:
            changes["awaiting"] = tuple(self._slot(slot, run_id) for slot in commit.awaiting)
        if commit.attempts:
            changes["attempts"] = tuple(self._attempt(each, run_id) for each in commit.attempts)
        if commit.context is not None:
            changes["context"] = self.context(commit.context, run_id, "context")
        if commit.output is not None:
            changes["output"] = self._value(commit.output, run_id, "output")
        if commit.error is not None:
            changes["error"] = self.failure(commit.error, run_id, "error")
        if commit.continuation is not None:
            changes["continuation"] = self._continuation(commit.continuation, run_id)
        if commit.outbox:
            changes["outbox"] = tuple(self._dispatch(each, run_id) for each in commit.outbox)
        return _change(commit, **changes) if changes else commit

    def entry(self, entry: Entry, run_id: str) -> Entry:
        """Return a journal entry sealed."""
        if entry.value is None and entry.error is None and not entry.context:
            return entry
        place = entry.place
        return _change(
            entry,
            value=self._value(entry.value, run_id, place),
            error=self.failure(entry.error, run_id, f"{place}/error"),
            context=self.context(entry.context, run_id, f"{place}/context"),
        )

    def _entries(self, entries: Iterable[Entry], run_id: str) -> tuple[Entry, ...]:
        return tuple(self.entry(entry, run_id) for entry in entries)

    def message(self, message: Message, run_id: str) -> Message:
        """Return a message sealed."""
        if message.payload is None and message.error is None:
            return message
        return _change(
            message,
            payload=self._value(message.payload, run_id, message.place),
            error=self.failure(message.error, run_id, f"{message.place}/error"),
        )

    def failure(self, failure: Any, run_id: str, place: str) -> Any:
        """Return a failure whose code, type and step are readable, and nothing else."""
        if failure is None:
            return None
        data = to_builtins(failure)
        details = {name: data[name] for name in _ERROR_FIELDS if name in data}
        return Failure(
            code=failure.code,
            type=failure.type,
            message=_TEXT,
            step=failure.step,
            attributes={"sealed": self._value(details, run_id, place)},
        )

    def heartbeat(self, details: object, run_id: str, step: str) -> Any:
        """Return the details of a heartbeat sealed."""
        return self._value(details, run_id, f"attempts/{step}")

    def context(self, context: Any, run_id: str, place: str) -> Any:
        """Return a context, sealed if the codec does that."""
        if not context or not self._codec.seals_context:
            return context
        return {"sealed": self._value(dict(context), run_id, place)}

    def _input(self, given: Input, run_id: str, place: str = "input") -> Input:
        context = self.context(given.context, run_id, f"{place}/context")
        if given.payload is not None:
            return _change(given, context=context)
        args = [self._value([given.args, given.kwargs], run_id, place)]
        return Input(args=args, context=context)

    def _past(self, past: Past, run_id: str) -> Past:
        return _change(past, input=self._input(past.input, run_id, _FIRST))

    def _continuation(self, next_: Continuation, run_id: str) -> Continuation:
        return _change(
            next_,
            # A plain run becomes a sealed one here: nothing of its journal is left.
            code=_MARK + next_.code,
            input=self._input(next_.input, run_id),
            past=self._past(next_.past, run_id),
        )

    def _slot(self, slot: Slot, run_id: str) -> Slot:
        if slot.reason is None and slot.data is None:
            return slot
        asked = self._value([slot.reason, slot.data], run_id, f"awaiting/{slot.id}")
        return _change(slot, reason=_TEXT, data=asked)

    def _attempt(self, attempt: Attempt, run_id: str) -> Attempt:
        if attempt.heartbeat is None:
            return attempt
        return _change(attempt, heartbeat=self.heartbeat(attempt.heartbeat, run_id, attempt.id))

    def _dispatch(self, dispatch: Dispatch, run_id: str) -> Dispatch:
        place = f"outbox/{dispatch.rev}/{dispatch.to}"
        return _change(dispatch, reason=self._value(dispatch.reason, run_id, place))

    def _value(self, native: Any, run_id: str, place: str) -> Any:
        if native is None or type(native) is PayloadRef:
            return native
        return self._codec.encode(native, run_id=run_id, field=place)


class Opener:
    """Opens what `Sealer` sealed; everything raises `DataCorruption` where that can't be done."""

    def __init__(self, codec: PayloadCodec) -> None:
        self._codec = codec

    def run(self, run: Run) -> Run:
        """Return a run as it was given in."""
        return _change(
            run,
            code=_opened_code(run.code),
            input=self._input(run.input, run, "input"),
            context=self._context(run.context, run.id, "context"),
            output=self._value(run.output, run.id, "output"),
            error=self._failure(run.error, run.id, "error"),
            journal=[self.entry(entry, run.id) for entry in run.journal],
            inbox=[self._message(message, run.id) for message in run.inbox],
            awaiting=[self._slot(slot, run) for slot in run.awaiting],
            attempts=[self._attempt(attempt, run.id) for attempt in run.attempts],
            past=None if run.past is None else self._past(run.past, run),
            outbox=self.outbox(run.outbox, run.id),
        )

    def outbox(self, dispatches: Sequence[Dispatch], run_id: str) -> list[Dispatch]:
        """Return dispatches as they were given in."""
        return [self._dispatch(each, run_id) for each in dispatches]

    def _dispatch(self, dispatch: Dispatch, run_id: str) -> Dispatch:
        place = f"outbox/{dispatch.rev}/{dispatch.to}"
        try:
            return _change(dispatch, reason=self._value(dispatch.reason, run_id, place))
        except DataCorruption:
            # Told without its reason: one that can't be opened must not hold up the others.
            return _change(dispatch, reason=None)

    def entry(self, entry: Entry, run_id: str) -> Entry:
        """Return a journal entry as it was given in."""
        if entry.value is None and entry.error is None and not entry.context:
            return entry
        place = entry.place
        return _change(
            entry,
            value=self._value(entry.value, run_id, place),
            error=self._failure(entry.error, run_id, f"{place}/error"),
            context=self._context(entry.context, run_id, f"{place}/context"),
        )

    def _message(self, message: Message, run_id: str) -> Message:
        if message.payload is None and message.error is None:
            return message
        return _change(
            message,
            payload=self._value(message.payload, run_id, message.place),
            error=self._failure(message.error, run_id, f"{message.place}/error"),
        )

    def _failure(self, failure: Failure | None, run_id: str, place: str) -> Failure | None:
        if failure is None:
            return None
        if failure.attributes.keys() != {"sealed"}:
            # What is said of a run that was set aside is plain, and no payload.
            if failure.code == ErrorCode.DATA_CORRUPTION or self._codec.accepts_plain:
                return failure
            raise _not_sealed(run_id, place)
        sealed = self._value(failure.attributes["sealed"], run_id, place)
        details = _convert(sealed, dict[str, Any], run_id, place)
        data = {"code": failure.code, "type": failure.type, "step": failure.step}
        opened: Failure = _convert({**data, **details}, Failure, run_id, place)
        return opened

    def _context(self, context: Any, run_id: str, place: str) -> Any:
        if not context or not self._codec.seals_context:
            return context
        if context.keys() != {"sealed"}:
            if self._codec.accepts_plain:
                return context
            raise _not_sealed(run_id, place)
        return _convert(
            self._value(context["sealed"], run_id, place), dict[str, Any], run_id, place
        )

    def _past(self, past: Past, run: Run) -> Past:
        return _change(past, input=self._input(past.input, run, _FIRST))

    def _input(self, given: Input, run: Run, place: str) -> Input:
        if not run.code.startswith(_MARK) and self._codec.accepts_plain:
            return given
        context = self._context(given.context, run.id, f"{place}/context")
        if given.payload is not None:
            return _change(given, context=context)
        if len(given.args) != 1 or given.kwargs:
            raise _not_sealed(run.id, place)
        opened = self._value(given.args[0], run.id, place)
        args, kwargs = _convert(opened, tuple[list[Any], dict[str, Any]], run.id, place)
        return Input(args=args, kwargs=kwargs, context=context)

    def _slot(self, slot: Slot, run: Run) -> Slot:
        if slot.reason is None and slot.data is None:
            return slot
        if slot.reason != _TEXT and self._codec.accepts_plain:
            return slot
        place = f"awaiting/{slot.id}"
        asked = self._value(slot.data, run.id, place)
        reason, data = _convert(asked, tuple[str | None, Any], run.id, place)
        return _change(slot, reason=reason, data=data)

    def _attempt(self, attempt: Attempt, run_id: str) -> Attempt:
        if attempt.heartbeat is None:
            return attempt
        beat = self._value(attempt.heartbeat, run_id, f"attempts/{attempt.id}")
        return _change(attempt, heartbeat=beat)

    def _value(self, stored: Any, run_id: str, place: str) -> Any:
        if stored is None or type(stored) is PayloadRef:
            return stored
        try:
            return self._codec.decode(stored, run_id=run_id, field=place)
        except StreamlineError:
            raise
        except Exception as error:  # a codec of the user's own that fails
            raise DataCorruption(
                f"The payload {place!r} of run {run_id!r} can't be opened: "
                f"{type(error).__name__}: {error}",
                run_id=run_id,
            ) from error


def _opened_code(code: str) -> str:
    return code.removeprefix(_MARK)


def _convert(data: Any, type_: Any, run_id: str, place: str) -> Any:
    try:
        return msgspec.convert(data, type_)
    except msgspec.ValidationError as error:
        raise _not_sealed(run_id, place) from error


def _not_sealed(run_id: str, place: str) -> DataCorruption:
    return DataCorruption(
        f"{place!r} of run {run_id!r} was not stored through the payload codec. If the run was "
        "started without one, let the codec accept plain payloads; else restore its document.",
        run_id=run_id,
    )

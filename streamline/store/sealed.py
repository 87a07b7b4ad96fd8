"""`SealedStore`: a store around another, whose payloads pass a `PayloadCodec` on their way.

Owns which fields are payloads, and their names to the codec. What the engine and the inner store
need stays readable: ids, names, types, codes, times, `meta` and `tags`, references to payloads kept
outside (whose content is sealed), and the context unless the codec seals it. None and an empty
context stay as they are. Runs are stored under codes of their own, `sealed/<code>`, so that a
worker without the codec leaves them alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime

import msgspec

from streamline.clock import Clock
from streamline.codec import Failure, PayloadCodec, PayloadRef
from streamline.errors import DataCorruption
from streamline.model import (
    Claim,
    Commit,
    CommitResult,
    Dispatch,
    Entry,
    Message,
    Notice,
    PostResult,
    Run,
    Status,
)
from streamline.outbox import GRACE, outcomes
from streamline.store.base import Outbox, Renewal, RunStore
from streamline.store.encoding import corruption, salvage, to_document
from streamline.store.sealed_payloads import open_payload, seal_payload
from streamline.store.seals import MARK, Opener, Sealer, opened_code
from streamline.store.transitions import same_creation

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

    async def claim_holders(self, beginning: str, *, besides: str) -> list[str]:
        return await self.inner.claim_holders(beginning, besides=besides)

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

    def watch(self, *, besides: str | None = None) -> AsyncIterator[Notice]:
        return self._notices(self.inner.watch(besides=besides))

    async def _notices(self, notices: AsyncIterator[Notice]) -> AsyncIterator[Notice]:
        async for notice in notices:
            yield notice if notice.code is None else _change(notice, code=opened_code(notice.code))

    # -- codes, and what can't be opened ----------------------------------------------------------

    def _stored_codes(self, codes: Sequence[str]) -> list[str]:
        sealed = [MARK + code for code in codes]
        return [*sealed, *codes] if self._codec.accepts_plain else sealed

    def _open_leniently(self, run: Run) -> Run:
        try:
            return self._open.run(run)
        except DataCorruption as error:
            document = to_document(run) | {"code": opened_code(run.code)}
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

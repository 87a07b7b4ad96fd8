"""Posting messages: one conditional update, and the reason where it finds nothing to match."""

from __future__ import annotations

import asyncio
import time

import bson
import msgspec

from streamline.errors import ServerUnavailable
from streamline.model import Claim, Message, PostResult, Run
from streamline.store.archive import Archive
from streamline.store.base import check_in_time
from streamline.store.connection import Connection, Document
from streamline.store.encoding import to_builtins
from streamline.store.indexes import RUNS
from streamline.store.modify import find_and_modify
from streamline.store.updates import (
    ENDED_VALUES,
    INBOX_BYTES,
    PENDING,
    claim_update,
    parked_filter,
    post_filter,
    post_update,
)

# What an element of an array costs beside the document in it: its type and its index as text.
_ELEMENT = 8
_WITHOUT_JOURNAL = {"journal": 0}


class Post(msgspec.Struct, frozen=True):
    """A message on its way to a run."""

    run_id: str
    message: Message
    slot: str | None
    room: int

    @classmethod
    def of(cls, run_id: str, message: Message, slot: str | None, *, limit: int) -> Post:
        """Measure how large the inbox may be before the message."""
        size = len(bson.encode(to_builtins(message))) + _ELEMENT
        return cls(run_id, message, slot, limit - size)


class Lane:
    """The way of this process's messages to one run: one after the other, in the order of calls.

    Side by side they would only conflict on the server, where some then starve. Those that queued
    while the server was silent fail with the first, not each after a timeout of its own.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.lock: asyncio.Lock = asyncio.Lock()
        self._failure: ServerUnavailable | None = None
        self._failed_at = 0.0

    def check(self, since: float) -> None:
        """Raise if the server was found silent since then."""
        if self._failure is not None and self._failed_at > since:
            raise ServerUnavailable(str(self._failure)) from self._failure

    def fail(self, error: ServerUnavailable) -> None:
        """Note that the server is silent."""
        self._failure, self._failed_at = error, time.monotonic()


class Messages:
    """Puts messages into inboxes."""

    def __init__(self, connection: Connection, archive: Archive, *, inbox_limit: int) -> None:
        self._connection = connection
        self._archive = archive
        self._inbox_limit = inbox_limit
        self._lanes: dict[str, Lane] = {}

    async def post(self, run_id: str, message: Message, slot: str | None) -> PostResult:
        """See `RunStore.post`."""
        lane = self._lanes.setdefault(run_id, Lane())
        lane.waiting += 1
        came = time.monotonic()
        try:
            async with lane.lock:
                lane.check(came)
                try:
                    return await self._post(run_id, message, slot)
                except ServerUnavailable as error:
                    lane.fail(error)
                    raise
        finally:
            lane.waiting -= 1
            if not lane.waiting:
                del self._lanes[run_id]

    async def _post(self, run_id: str, message: Message, slot: str | None) -> PostResult:
        post = Post.of(run_id, message, slot, limit=self._inbox_limit)
        uncertain = False  # whether an earlier try of ours may have put it there
        # The archive of a generation that has none can't hold it.
        archived: Document = {"journal_base": 0}
        while True:
            matched, again = await self._update(post, archived)
            uncertain = uncertain or again
            if matched:
                return PostResult.POSTED
            found = await self._look(post)
            if found is None:
                return PostResult.NO_RUN
            # The base is missing where somebody damaged it, the generation in the first one.
            archived = {name: found.get(name) for name in ("journal_base", "generation")}
            reason = await self._reason(post, found)
            if reason is PostResult.DUPLICATE and uncertain:
                return PostResult.POSTED
            if reason is not None:
                return reason
            check_in_time(message.payload, run_id, self._connection.clock.now())

    async def post_to_parked(
        self, parked: Run, message: Message, claim: Claim, slot: str | None
    ) -> Document | None:
        """See `RunStore.post_to_parked`."""
        post = Post.of(parked.id, message, slot, limit=self._inbox_limit)
        fits = parked_filter(parked, message, slot=slot, room=post.room)
        change = post_update(message, slot) + claim_update(claim)
        runs = self._connection.collection(RUNS)

        async def update(again: bool) -> Document | None:
            found = await find_and_modify(runs, fits, change, _WITHOUT_JOURNAL)
            if found is None and again:
                found = await runs.find_one({"_id": parked.id, "claim": claim.id}, _WITHOUT_JOURNAL)
            return found

        return await self._connection.persist(update)

    async def _update(self, post: Post, archived: Document) -> tuple[bool, bool]:
        fits = post_filter(
            post.run_id, post.message, slot=post.slot, archived=archived, room=post.room
        )
        change = post_update(post.message, post.slot)

        async def update(again: bool) -> tuple[bool, bool]:
            result = await self._connection.collection(RUNS).update_one(fits, change)
            return bool(result.matched_count), again

        return await self._connection.persist(update)

    async def _look(self, post: Post) -> Document | None:
        async def read(again: bool) -> Document | None:
            fields: Document = {
                "status": 1,
                "journal_base": 1,
                "generation": 1,
                "taken_before": _taken_before(post.message.id),
                "awaiting.id": 1,
                "inbox": {"$elemMatch": {"id": post.message.id}},
                "journal": {"$elemMatch": {"message": post.message.id}},
                "inbox_bytes": INBOX_BYTES,
            }
            if (pending := PENDING.get(post.message.kind)) is not None:
                fields["pending"] = pending
            return await self._connection.collection(RUNS).find_one({"_id": post.run_id}, fields)

        return await self._connection.persist(read)

    async def _reason(self, post: Post, found: Document) -> PostResult | None:
        """Return why the run can't take the message; None if by now it can."""
        if found.get("inbox") or found.get("journal") or found.get("taken_before"):
            return PostResult.DUPLICATE
        # Entries may be archived between this look and the update; then the update, which names
        # the base, matches nothing, and this is asked again.
        archived = found.get("journal_base")
        if archived and await self._archive.has_message(post.run_id, post.message.id):
            return PostResult.DUPLICATE
        if found.get("status") in ENDED_VALUES:
            return PostResult.ENDED
        open_slots = {slot["id"] for slot in found.get("awaiting", ())}
        if post.slot is not None and post.slot not in open_slots:
            return PostResult.NO_SLOT
        if post.message.kind in PENDING:
            return PostResult.PENDING if found["pending"] else None
        return PostResult.FULL if found["inbox_bytes"] > post.room else None


def _taken_before(message_id: str) -> Document:
    """Whether an earlier generation of the run took the message."""
    return {"$in": [{"$literal": message_id}, {"$ifNull": ["$past.taken", []]}]}

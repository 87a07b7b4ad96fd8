"""`Spill`: moves large payloads out of what is about to be stored, and brings them back.

Stands between those who make payloads and a store. Each payload is durable before the verb that
refers to it is called: a crash between the two leaves an orphan, which a sweep finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from streamline.codec import LargePayload, PayloadRef, native_of
from streamline.errors import DataCorruption
from streamline.model import INPUT, OUTPUT, Commit, Entry, Input, Message, Run
from streamline.store.base import RunStore
from streamline.store.encoding import references_of

_change = msgspec.structs.replace


class Spill:
    """Puts large payloads into a store and loads them.

    Args:
        store: Where they go.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store

    # -- out --------------------------------------------------------------------------------------

    async def run(self, run: Run) -> Run:
        """Return a new run with its input kept outside, if it is a large payload."""
        payload = run.input.payload
        if not isinstance(payload, LargePayload):
            return run
        ref = await self._put(payload, run.id, INPUT)
        return _change(run, input=run.input.with_payload(ref), spilled=True)

    async def message(self, message: Message, run_id: str) -> Message:
        """Return a new message with its payload kept outside, if it is large."""
        if type(message.payload) is not LargePayload:
            return message
        return message.with_payload(await self._put(message.payload, run_id, message.place))

    async def commit(self, commit: Commit) -> Commit:
        """Return a commit with its large payloads kept outside."""
        entries = [
            entry.with_value(await self._put_for(commit, entry.value, entry.place))
            for entry in commit.entries
        ]
        output = await self._put_for(commit, commit.output, OUTPUT)
        return _change(commit, entries=tuple(entries), output=output)

    async def _put_for(self, commit: Commit, value: Any, place: str) -> Any:
        if type(value) is not LargePayload:
            return value
        return await self._put(value, commit.run_id, place, fence=commit.fence)

    async def _put(
        self, large: LargePayload, run_id: str, place: str, *, fence: int | None = None
    ) -> PayloadRef:
        # One that a message brought is kept without a fence; of others each claim has its own.
        if large.stored and large.ref is not None and large.fence in (None, fence):
            return large.ref
        if large.ref is None or large.fence != fence:
            large.ref = PayloadRef.new(self._store.clock.now(), len(large.data))
            large.fence, large.stored = fence, False
        await self._store.put_payload(run_id, large.ref, place, large.data, fence=fence)
        large.stored = True
        return large.ref

    async def discard(self, payload: object, run_id: str) -> None:
        """Delete what was put for a verb that was refused, so that nothing refers to it."""
        if type(payload) is LargePayload and payload.ref is not None:
            ref, payload.ref, payload.stored = payload.ref, None, False
            await self._store.discard_payload(run_id, ref)

    # -- back -------------------------------------------------------------------------------------

    async def load(self, value: Any, run_id: str, place: str, *, step: str | None = None) -> Any:
        """Return a payload at hand, if it is a reference; else the value as it is.

        Raises:
            DataCorruption: It is missing, or isn't what was put there.
        """
        if type(value) is not PayloadRef:
            return value
        try:
            data = await self._store.load_payload(run_id, value, place)
        except DataCorruption as error:
            raise DataCorruption(str(error), run_id=run_id, step=step) from error
        if len(data) != value.size:
            raise DataCorruption(
                f"The payload {place!r} of run {run_id!r} has {len(data):,} bytes, but "
                f"{value.size:,} were put. Restore it from a backup.",
                run_id=run_id,
                step=step,
            )
        return LargePayload(data, value)

    async def entry(self, entry: Entry, run_id: str) -> Entry:
        """Return an entry with its value at hand."""
        if type(entry.value) is not PayloadRef:
            return entry
        value = await self.load(entry.value, run_id, entry.place, step=entry.id)
        return entry.with_value(value)

    async def input(self, given: Input, run_id: str) -> Input:
        """Return an input that is at hand."""
        payload = given.payload
        if not isinstance(payload, PayloadRef):
            return given
        return given.with_payload(await self.load(payload, run_id, INPUT))

    async def find(self, ref: PayloadRef, run: Run) -> Any:
        """Return the native value of a payload that a run refers to, wherever it does.

        Raises:
            DataCorruption: It doesn't, or the payload is missing.
        """
        place = references_of(run).get(ref)
        if place is None:
            archived = await self._store.load_archive(run.id, run.journal_base)
            places = (entry.place for entry in archived if entry.value == ref)
            place = next(places, None)
        if place is None:
            raise DataCorruption(
                f"run {run.id!r} doesn't refer to the payload {str(ref.payload)!r} (any more)",
                run_id=run.id,
            )
        return native_of(await self.load(ref, run.id, place))


async def with_payloads(store: RunStore, run: Run, archived: Sequence[Entry] = ()) -> Run:
    """Return a run with its whole journal, and all payloads in it; for exporting it.

    Args:
        store: Where the run is.
        run: The run as its store returns it.
        archived: The entries that were moved out of its document.
    """
    whole = _change(run, journal=[*archived, *run.journal], journal_base=0)
    spill = Spill(store)
    loaded = {
        ref: native_of(await spill.load(ref, run.id, place))
        for ref, place in references_of(whole).items()
    }

    def filled(given: Input) -> Input:
        if not isinstance(given.payload, PayloadRef):
            return given
        args, kwargs = loaded[given.payload]
        return Input(args=args, kwargs=kwargs, context=given.context)

    whole = _change(whole, input=filled(whole.input))
    if whole.past is not None:
        whole = _change(whole, past=_change(whole.past, input=filled(whole.past.input)))

    def fill(place: str, value: Any) -> Any:
        return loaded[value] if type(value) is PayloadRef else value

    return _change(whole.map_payloads(fill), spilled=False)

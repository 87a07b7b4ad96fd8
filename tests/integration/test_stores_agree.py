"""The memory store and the Mongo store, given the same random calls, are of one mind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamline.errors import DataCorruption
from streamline.model import (
    Attempt,
    Dispatch,
    DispatchKind,
    Message,
    MessageKind,
    Parent,
    Run,
    Slot,
    SlotKind,
    Status,
)
from streamline.store.base import RunStore
from tests.conformance.samples import (
    BOOM,
    commit_of,
    continuing,
    entry,
    held_run,
    new_claim,
    new_run,
)
from tests.conformance.worlds import MemoryWorld, MongoWorld, World

pytestmark = pytest.mark.mongo

RUN_IDS = st.sampled_from(["a", "b"])
SMALL = st.integers(0, 2)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), RUN_IDS, st.booleans()),
        st.tuples(st.just("claim_due"), SMALL),
        st.tuples(st.just("claim_run"), RUN_IDS),
        st.tuples(
            st.just("commit"),
            RUN_IDS,
            st.sampled_from(list(Status)),
            st.integers(0, 5),
            st.booleans(),
        ),
        st.tuples(st.just("commit_stale"), RUN_IDS, SMALL, SMALL),
        st.tuples(st.just("archive"), RUN_IDS),
        st.tuples(st.just("continue"), RUN_IDS, SMALL, SMALL),
        st.tuples(st.just("post"), RUN_IDS, SMALL, st.sampled_from(list(MessageKind))),
        st.tuples(st.just("post_slot"), RUN_IDS, SMALL),
        st.tuples(st.just("post_to_parked"), RUN_IDS, SMALL, st.booleans()),
        st.tuples(st.just("release"), RUN_IDS, SMALL),
        st.tuples(st.just("renew"), SMALL),
        st.tuples(
            st.just("expire"),
        ),
        st.tuples(st.just("heartbeat"), RUN_IDS),
        st.tuples(st.just("unpause"), RUN_IDS),
        st.tuples(st.just("cancel"), RUN_IDS),
        st.tuples(st.just("terminate"), RUN_IDS),
        st.tuples(st.just("replace"), RUN_IDS),
        st.tuples(st.just("follow"), RUN_IDS, SMALL),
        st.tuples(st.just("tell"), RUN_IDS, SMALL),
        st.tuples(st.just("settle"), RUN_IDS, SMALL),
        st.tuples(st.just("rewind"), RUN_IDS, SMALL),
        st.tuples(
            st.just("advance"),
        ),
    ),
    max_size=25,
)


class Pilot:
    """Calls the verbs of one store and tells what came of them, times and chance left out."""

    def __init__(self, world: World, store: RunStore) -> None:
        self._world = world
        self._store = store
        self._calls = 0

    async def perform(self, operation: tuple[Any, ...]) -> object:
        self._calls += 1
        name, *arguments = operation
        return await getattr(self, f"_{name}")(*arguments)

    async def state(self) -> list[object]:
        now = self._store.clock.now()
        return [
            None if run is None else self._plain(run, now)
            for run in [await self._store.load_run(run_id) for run_id in ("a", "b")]
        ]

    def _plain(self, run: Run, now: Any) -> dict[str, Any]:
        due = None if run.due_at is None else run.due_at <= now + timedelta(seconds=1)
        names = ("status", "rev", "fence", "inbox_seq", "worker", "recoveries", "journal_base")
        names += ("generation", "version", "input", "first_input")
        names += ("epoch", "followers", "outbox")
        return {
            **{name: getattr(run, name) for name in names},
            **{n: [each.id for each in getattr(run, n)] for n in ("journal", "inbox", "awaiting")},
            "heartbeats": [each.heartbeat for each in run.attempts],
            "context": run.context,
            "error": run.error,
            "taken": None if run.past is None else run.past.taken,
            "due": due,
            "to tell": run.outbox_due is None,
            "set": [run.started_at is None, run.ended_at is None, run.expire_at is None],
        }

    async def _create(self, run_id: str, held: bool) -> bool:
        # Each its own, or by chance two would count as one creation tried again.
        created_at = self._store.clock.now() + timedelta(milliseconds=self._calls * 100)
        make = held_run if held else new_run
        parent = Parent(run="p", slot="s", code="wf") if self._calls % 2 else None
        fields: dict[str, Any] = {"expire_after": 60.0, "created_at": created_at, "parent": parent}
        run = make(self._store, run_id, **fields)
        return (await self._store.create_run(run))[1]

    async def _claim_due(self, limit: int) -> list[str]:
        claimed = await self._store.claim_due(new_claim("w2"), ["wf"], limit + 1)
        # Which of two that are due since nearly the same moment comes first is left open.
        return sorted(run.id for run in claimed) if limit else [str(len(claimed))]

    async def _claim_run(self, run_id: str) -> bool:
        return await self._store.claim_run(new_claim("w3"), run_id) is not None

    async def _commit(self, run_id: str, status: Status, seq: int, full: bool) -> object:
        if (run := await self._store.load_run(run_id)) is None:
            return None
        now = self._store.clock.now()
        later = now + timedelta(seconds=50)
        fields: dict[str, Any] = {"inbox_seq": seq if seq < 2 else None}
        if seq > 2:
            pauses = [each.id for each in run.inbox if each.kind is MessageKind.PAUSE]
            fields |= {
                "open_slots": seq - 3 if seq < 5 else None,
                "pause": pauses[0] if pauses else None,
                "uncancelled": full,
            }
        if full:
            fields |= {
                "entries": (entry(self._store, f"s{self._calls}"),),
                "consumed": tuple(message.id for message in run.inbox[:1]),
                "awaiting": (Slot(id="slot", kind=SlotKind.WAIT, name="slot", since=now),),
                "attempts": (Attempt(id="step", attempt=1, started_at=now),),
                "context": {"$call": self._calls},
                "due_at": later,
            }
        return await self._store.commit(commit_of(run, status, **fields))

    async def _commit_stale(self, run_id: str, fence: int, rev: int) -> object:
        run = held_run(self._store, run_id, fence=fence, rev=rev)
        return await self._store.commit(commit_of(run))

    async def _archive(self, run_id: str) -> object:
        run = await self._store.load_run(run_id)
        if run is None or not run.journal:
            return None
        archive, base = tuple(run.journal), run.journal_base
        result = await self._store.commit(commit_of(run, archive=archive, journal_base=base))
        try:
            archived = await self._store.load_archive(run_id, base)
        except DataCorruption:
            return result, None
        return result, [each.id for each in archived]

    async def _continue(self, run_id: str, seq: int, taken: int) -> object:
        if (run := await self._store.load_run(run_id)) is None:
            return None
        commit = continuing(
            self._store,
            run,
            taken=(f"m{taken}",),
            inbox_seq=seq if seq < 2 else None,
            consumed=tuple(message.id for message in run.inbox[:1]),
            journal_base=run.journal_base,
        )
        # Twice, as one whose first reply was lost.
        return await self._store.commit(commit), await self._store.commit(commit)

    def _message(self, number: int, kind: MessageKind) -> Message:
        return Message(id=f"m{number}", kind=kind, at=self._store.clock.now())

    async def _post(self, run_id: str, number: int, kind: MessageKind) -> object:
        return await self._store.post(run_id, self._message(number, kind))

    async def _post_slot(self, run_id: str, number: int) -> object:
        message = self._message(number, MessageKind.RESUME)
        return await self._store.post(run_id, message, slot="slot")

    async def _post_to_parked(self, run_id: str, fence: int, closes: bool) -> object:
        known = held_run(self._store, run_id, fence=fence, rev=1)
        message = Message(id=f"n{self._calls}", kind=MessageKind.SEND, at=self._store.clock.now())
        slot = "slot" if closes else None
        run = await self._store.post_to_parked(known, message, new_claim("w2"), slot=slot)
        return None if run is None else (run.fence, run.status, [each.id for each in run.inbox])

    async def _release(self, run_id: str, fence: int) -> bool:
        return await self._store.release(run_id, fence)

    async def _renew(self, fence: int) -> object:
        held = {"a": fence, "b": fence}
        renewal = await asyncio.to_thread(self._store.renew, "w2", held, 60.0)
        return renewal.lost, renewal.inbox_seq

    async def _expire(self) -> int:
        return await self._store.expire_claims("w2")

    async def _heartbeat(self, run_id: str) -> bool:
        return await self._store.heartbeat(run_id, 1, "step", {"$beat": self._calls})

    async def _unpause(self, run_id: str) -> bool:
        return await self._store.unpause(run_id)

    async def _cancel(self, run_id: str) -> bool:
        return await self._store.cancel_unstarted(run_id, BOOM)

    async def _terminate(self, run_id: str) -> bool:
        return await self._store.terminate(run_id, BOOM)

    async def _replace(self, run_id: str) -> object:
        if (run := await self._store.load_run(run_id)) is None:
            return None
        new = held_run(self._store, run_id, fence=run.fence + 1)
        return await self._store.replace_run(new, rev=run.rev, fence=run.fence)

    async def _follow(self, run_id: str, number: int) -> object:
        run = await self._store.follow(run_id, f"f{number}")
        return None if run is None else (run.status, run.followers, run.inbox, run.journal)

    async def _tell(self, run_id: str, rev: int) -> object:
        if (run := await self._store.load_run(run_id)) is None:
            return None
        now = self._store.clock.now()
        told = Dispatch(kind=DispatchKind.CANCEL, to="x", rev=rev)
        slots = (Slot(id="c", kind=SlotKind.CHILD, name="a/c", since=now),)
        commit = commit_of(run, outbox=(told,), outbox_due=now, awaiting=slots)
        return await self._store.commit(commit)

    async def _settle(self, run_id: str, rev: int) -> object:
        kinds = {0: DispatchKind.CANCEL, 1: DispatchKind.OUTCOME, 2: DispatchKind.ABANDON}
        to = {0: "x", 1: "p", 2: "a/c"}[rev]
        sent = [Dispatch(kind=kinds[rev], to=to, rev=number) for number in range(9)]
        await self._store.settle_outbox(run_id, sent, self._store.clock.now())
        found = await self._store.load_outboxes(["wf"], 9)
        return sorted((each.run_id, str(each.dispatches)) for each in found)

    async def _rewind(self, run_id: str, count: int) -> object:
        run = await self._store.load_run(run_id)
        if run is None or run.journal_base:
            return None
        return await self._store.rewind_run(run, run.journal[:count])

    async def _advance(self) -> None:
        await self._world.advance(100)


class Both:
    """A memory store and a Mongo store, used for many examples."""

    def __init__(self, uri: str) -> None:
        self._mongo = MongoWorld(uri, replica_set=True)
        self._store: RunStore | None = None

    async def compare(self, operations: list[tuple[Any, ...]]) -> None:
        memory_world = MemoryWorld()
        memory = Pilot(memory_world, await memory_world.store())
        if self._store is None:
            self._store = await self._mongo.store()
        await self._mongo.database.workflow_runs.delete_many({})
        await self._mongo.database.workflow_journal.delete_many({})
        mongo = Pilot(self._mongo, self._store)
        for operation in operations:
            assert await mongo.perform(operation) == await memory.perform(operation), operation
            assert await mongo.state() == await memory.state(), operation

    async def close(self) -> None:
        await self._mongo.close()


@pytest.fixture
def both(mongod_replica: str) -> Iterator[tuple[asyncio.Runner, Both]]:
    with asyncio.Runner() as runner:
        both = runner.run(_make(mongod_replica))
        yield runner, both
        runner.run(both.close())


async def _make(uri: str) -> Both:
    return Both(uri)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=OPERATIONS)
def test_both_stores_do_the_same(
    both: tuple[asyncio.Runner, Both], operations: list[tuple[Any, ...]]
) -> None:
    runner, stores = both
    runner.run(stores.compare(operations))

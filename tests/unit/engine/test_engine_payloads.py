"""Large payloads in the engine: where they are, who loads them, and crashes in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine_support import SECONDS, once_it_waits, until, until_status
from hypothesis import given, settings
from hypothesis import strategies as st

from streamline import (
    PayloadTooLarge,
    Registry,
    RunConflict,
    RunFailed,
    Status,
    Streamline,
    ValidationError,
    continue_as_new,
    current,
    receive,
    set_context,
    sleep,
    step,
    wait,
    workflow,
)
from streamline.codec import PayloadRef
from streamline.model import CommitResult, Message, MessageKind
from streamline.store.encoding import references_of
from streamline.store.memory import MemoryStore
from streamline.store.memory_data import MemoryData
from streamline.testing import Environment, export_history, replay, with_payloads
from streamline.testing.process import MortalStore

LARGE = 300_000
HUGE = 4_000_000


def payloads(world: Any) -> dict[Any, Any]:
    kept: dict[Any, Any] = world._shared.payloads.kept
    return kept


@pytest.fixture
def flow(world: Any) -> Any:
    """A workflow with large payloads wherever they can be."""

    @world.step(name="double")
    async def double(text: str) -> str:
        return text * 2

    @world.workflow
    async def flow(text: str, *, more: bytes = b"") -> dict[str, Any]:
        doubled = await double(text)
        await sleep("1h")
        mail = await receive("mail", type=str)
        answer = await wait("Well?", name="answer", type=list[str])
        return {"doubled": doubled, "mail": mail, "answer": answer, "more": more}

    return flow


async def speak(run: Any) -> None:
    await run.send("mail", "m" * LARGE)
    await once_it_waits(lambda: run.resume(["a" * LARGE]))


async def test_large_payloads_go_all_the_way(world: Any, flow: Any) -> None:
    run = await flow.start("x" * LARGE, more=b"y" * LARGE)
    speaking = asyncio.create_task(speak(run))
    expected = {
        "doubled": "x" * LARGE * 2,
        "mail": "m" * LARGE,
        "answer": ["a" * LARGE],
        "more": b"y" * LARGE,
    }
    assert await run.result(SECONDS) == expected
    await speaking
    document = world._shared.get(run.id)
    assert len(str(document)) < 5000
    assert document["spilled"] is True
    stored = await world.run(run.id)
    assert len(references_of(stored)) == 5  # input, result, two messages, output
    assert len(payloads(world)) == 5
    # Another process, which has nothing in memory.
    await world.crash()
    assert await world.handle(run.id).result(SECONDS) == expected


async def test_small_payloads_stay_in_the_document(world: Any, flow: Any) -> None:
    run = await flow.start("x")
    await run.send("mail", "m")
    speaking = asyncio.create_task(once_it_waits(lambda: run.resume(["a"])))
    await run.result(SECONDS)
    await speaking
    assert payloads(world) == {}
    assert "spilled" not in world._shared.get(run.id)


async def test_the_document_shows_references_that_the_handle_loads(world: Any, flow: Any) -> None:
    run = await flow.start("x" * LARGE)
    speaking = asyncio.create_task(speak(run))
    await run.wait(SECONDS)
    await speaking
    document = await run.get()
    assert document.output.keys() == {"payload", "size"}
    assert document.output["size"] > 3 * LARGE
    assert (await run.load(document.output))["mail"] == "m" * LARGE
    assert await run.load(document.input.args[0]) == [["x" * LARGE], {}]
    entries = {entry.id: entry.value for entry in document.journal}
    assert await run.load(entries["double"]) == "x" * LARGE * 2
    assert await run.load(entries["receive:mail"]) == "m" * LARGE
    assert await run.load("as it is") == "as it is"
    assert str(document.output["payload"]) in document.model_dump_json()


async def test_crashes_at_every_commit_change_nothing(world: Any, flow: Any) -> None:
    result = await world.crash_everywhere_with(lambda: flow.start("x" * LARGE), speak)
    assert result["doubled"] == "x" * LARGE * 2


registry = Registry()


@step(registry=registry)
async def make(size: int) -> bytes:
    return b"x" * size


@workflow(registry=registry)
async def making(sizes: list[int]) -> list[int]:
    together = await asyncio.gather(*(make(size) for size in sizes))
    return [len(each) for each in together]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from([1, 1000, LARGE, HUGE + 1000]), min_size=1, max_size=4))
def test_crashes_at_every_commit_of_any_sizes_change_nothing(sizes: list[int]) -> None:
    environment = Environment(registry=registry)
    assert asyncio.run(environment.crash_everywhere(making, sizes)) == sizes


# -- what is held in memory -----------------------------------------------------------------------


async def test_a_parked_run_holds_no_encoded_result_that_is_huge(world: Any) -> None:
    @world.step(name="make")
    async def make(n: int) -> bytes:
        return b"x" * HUGE

    @world.workflow
    async def flow() -> int:
        total = sum([len(await make(n)) for n in range(5)])
        await wait("go on", name="on")
        return total

    run = await flow.start()
    await until_status(run, Status.WAITING)
    await until(lambda: world.process.worker.cached == 1)
    driver = world.process.worker._parked.find(run.id)
    assert driver is not None
    session = driver._session
    assert all(type(entry.value) is PayloadRef for entry in session.tail.stored)
    for step_id in ("make", "make#5"):
        with pytest.raises(PayloadTooLarge, match="too large to be asked for again"):
            session.body.output_of(step_id)
    await run.resume()
    assert await run.result(SECONDS) == 5 * HUGE


async def test_a_replay_loads_one_result_at_a_time(world: Any, monkeypatch: Any) -> None:
    """And listing, status and result load none that they don't need."""
    loads: list[str] = []
    load = MemoryStore.load_payload

    async def counted(self: Any, run_id: str, ref: PayloadRef, place: str) -> bytes:
        loads.append(place)
        return await load(self, run_id, ref, place)

    monkeypatch.setattr(MemoryStore, "load_payload", counted)

    @world.step(name="make")
    async def make(n: int) -> bytes:
        return b"x" * LARGE

    @world.workflow
    async def flow(given: bytes) -> int:
        total = sum([len(await make(n)) for n in range(3)])
        await wait("go on", name="on")
        return total

    run = await flow.start(b"y" * LARGE)
    await until_status(run, Status.WAITING)
    await run.get()
    await run.status()
    assert loads == ["input"]  # by the worker, which is another process than the test
    loads.clear()
    await world.crash()
    await run.resume()
    assert await run.result(SECONDS) == 3 * LARGE
    assert loads == [
        "input",
        "journal/step/make/1",
        "journal/step/make#2/1",
        "journal/step/make#3/1",
    ]


async def test_outputs_can_be_asked_for_again_up_to_a_size(world: Any) -> None:
    @world.step(name="make")
    async def make(size: int) -> bytes:
        return b"x" * size

    @world.step(name="ask")
    async def ask() -> list[Any]:
        (given,), _ = current().input
        return [len(given), len(current().output_of("make"))]

    @world.step(name="ask_for_huge", attempts=1)
    async def ask_for_huge() -> None:
        current().output_of("make#2")

    @world.workflow
    async def flow(given: bytes) -> list[Any]:
        await make(LARGE)
        await make(HUGE)
        asked = await ask()
        with pytest.raises(PayloadTooLarge, match="pass it on as an argument"):
            current().output_of("make#2")
        await ask_for_huge()
        return asked

    run = await flow.start(b"y" * LARGE)
    with pytest.raises(RunFailed, match=r"'make#2' of run .* 4,000,0.. bytes") as caught:
        await run.result(SECONDS)
    assert caught.value.error_code == "PAYLOAD_TOO_LARGE"


async def test_a_huge_input_is_not_kept(world: Any) -> None:
    @world.workflow
    async def flow(given: bytes) -> int:
        with pytest.raises(PayloadTooLarge, match="the input of run"):
            _ = current().input
        return len(given)

    run = await flow.start(b"y" * HUGE)
    assert await run.result(SECONDS) == HUGE


# -- starting -------------------------------------------------------------------------------------


async def test_a_second_start_compares_large_inputs(world: Any, flow: Any) -> None:
    run = await flow.options(id="one").start("x" * LARGE)
    assert (await flow.options(id="one").start("x" * LARGE)).id == run.id
    with pytest.raises(RunConflict, match="another input"):
        await flow.options(id="one").start("y" * LARGE)
    with pytest.raises(RunConflict, match="another input"):
        await flow.options(id="one").start("small")
    small = await flow.options(id="two").start("small")
    with pytest.raises(RunConflict, match="another input"):
        await flow.options(id=small.id).start("x" * LARGE)
    await until_status(run, Status.WAITING)
    assert len(payloads(world)) == 2  # input and result of the first; the others were discarded


async def test_a_restart_replaces_a_large_input(world: Any) -> None:
    @world.workflow
    async def flow(given: str) -> str:
        return given[:1]

    first = await flow.options(id="one").start("a" * LARGE)
    assert await first.result(SECONDS) == "a"
    again = flow.options(id="one", on_existing="restart")
    assert await (await again.start("b" * LARGE)).result(SECONDS) == "b"
    assert (await world.run("one")).input.payload in references_of(await world.run("one"))


async def test_a_message_that_is_refused_leaves_nothing_behind(world: Any) -> None:
    @world.workflow
    async def flow() -> str:
        return await receive("mail", type=str)

    run = await flow.start()
    await until_status(run, Status.WAITING)
    await run.send("other", "x" * LARGE, id="m")
    await run.send("other", "x" * LARGE, id="m")
    assert len(payloads(world)) == 1
    await run.send("mail", "done")
    await run.result(SECONDS)
    with pytest.raises(Exception, match="has ended"):
        await run.send("mail", "x" * LARGE)
    assert len(payloads(world)) == 1


async def test_a_large_message_of_a_wrong_type_is_refused_at_the_sender(world: Any) -> None:
    @world.workflow
    async def flow() -> int:
        return len(await receive("mail", type=list[int]))

    run = await flow.start()
    await until_status(run, Status.WAITING)
    with pytest.raises(Exception, match="the payload for 'mail'"):
        await run.send("mail", "x" * LARGE)
    assert payloads(world) == {}
    await run.send("mail", list(range(100_000)))
    assert await run.result(SECONDS) == 100_000


async def test_messages_keep_their_order_when_some_are_large(world: Any) -> None:
    @world.workflow
    async def flow() -> list[str]:
        return [(await receive("mail", type=str))[:2] for _ in range(6)]

    run = await flow.start()
    for number in range(6):
        await run.send("mail", f"{number}" * (LARGE if number % 2 else 2))
    assert await run.result(SECONDS) == ["00", "11", "22", "33", "44", "55"]


# -- what stays in the document -------------------------------------------------------------------


@pytest.mark.parametrize("what", ["context", "wait"])
async def test_what_stays_in_the_document_has_a_limit_of_its_own(world: Any, what: str) -> None:
    @world.workflow
    async def flow() -> None:
        if what == "context":
            set_context(big="x" * HUGE)
        await wait("look", data="x" * HUGE, name="look")

    with pytest.raises(RunFailed, match="bytes and 3,145,728 are allowed") as caught:
        await (await flow.start()).result(SECONDS)
    assert caught.value.error_code == "PAYLOAD_TOO_LARGE"


# -- a payload that somebody deleted --------------------------------------------------------------


async def test_a_missing_payload_fails_the_run_and_names_the_step(world: Any) -> None:
    @world.step(name="make")
    async def make() -> str:
        return "x" * LARGE

    @world.workflow
    async def flow() -> int:
        made = await make()
        await wait("go on", name="on")
        return len(made)

    run = await flow.start()
    await until_status(run, Status.WAITING)
    lost = dict(payloads(world))
    payloads(world).clear()
    await world.crash()
    await run.resume()
    with pytest.raises(RunFailed, match=r"'journal/step/make/1' of run") as caught:
        await run.result(SECONDS)
    assert caught.value.error_code == "DATA_CORRUPTION"
    assert run.id in str(caught.value)
    # It is restored, and the run goes on.
    payloads(world).update(lost)
    await run.retry()  # with the answer, which still lies in its inbox
    assert await run.result(SECONDS) == LARGE


async def test_events_have_the_values_themselves(world: Any) -> None:
    @world.step(name="make")
    async def make() -> str:
        return "x" * LARGE

    @world.workflow
    async def flow() -> str:
        return await make()

    await (await flow.start()).result(SECONDS)
    data = {event.name: event.data for event in world.heard}
    assert data["step:completed"] == data["workflow:completed"] == "x" * LARGE


async def test_a_run_of_the_local_worker_reads_none_of_its_own_payloads(monkeypatch: Any) -> None:
    async def refuse(self: Any, run_id: str, ref: PayloadRef, place: str) -> bytes:
        raise AssertionError(f"{place} was loaded")

    monkeypatch.setattr(MemoryStore, "load_payload", refuse)
    store = MemoryStore(data=MemoryData())
    async with Streamline(store=store, registry=registry) as engine:
        run = await engine.start_run(making, [LARGE, LARGE, 5])
        assert await run.result(SECONDS) == [LARGE, LARGE, 5]


async def test_a_history_has_the_large_payloads_in_it(world: Any, flow: Any) -> None:
    run = await flow.start("x" * LARGE)
    speaking = asyncio.create_task(speak(run))
    await run.wait(SECONDS)
    await speaking
    stored = await world.run(run.id)
    for refused in (export_history, lambda run: replay(flow, run)):
        with pytest.raises(ValidationError, match="with_payloads"):
            refused(stored)
    whole = await with_payloads(world.store, stored)
    assert references_of(whole) == {}
    replayed = replay(flow, export_history(whole))
    assert (replayed.ending, replayed.value["mail"]) == ("done", "m" * LARGE)


async def test_what_a_crash_leaves_behind_is_swept(world: Any) -> None:
    """The worker dies between the write of a result and the commit that refers to it."""
    left: list[int] = []

    def die(commit: Any) -> bool:
        if left or not commit.entries:
            return False
        left.append(len(payloads(world)))
        world.crash_soon()
        return True

    @world.step(name="make")
    async def make() -> str:
        return "x" * LARGE

    @world.workflow
    async def flow() -> int:
        return len(await make())

    world.process.mortal_store.before_commit = die
    run = await flow.start()
    assert await run.result(SECONDS) == LARGE
    assert left == [1]
    assert len(payloads(world)) == 2
    for kept in payloads(world).values():
        kept.check_at = world.clock.now()
    assert await world.store.sweep_payloads() == 1
    (entry,) = (await run.get()).journal
    assert await run.load(entry.value) == "x" * LARGE


async def test_a_commit_that_a_message_refused_writes_its_payload_once(world: Any) -> None:
    """INBOX_MOVED: the facts are applied again, and what they put is there already."""
    refused: list[CommitResult] = []
    commit = MortalStore.commit

    async def interfered(self: Any, change: Any) -> CommitResult:
        if change.inbox_seq is not None and not refused:
            now = world.clock.now()
            mail = Message(id="m", kind=MessageKind.SEND, at=now, name="other")
            await world.store.post(change.run_id, mail)
        result = await commit(self, change)
        if result is CommitResult.INBOX_MOVED:
            refused.append(result)
        return result

    @world.step(name="make")
    async def make() -> str:
        return "x" * LARGE

    @world.workflow
    async def flow() -> int:
        return len(await make())

    world.process.mortal_store.commit = interfered.__get__(world.process.mortal_store)
    assert await (await flow.start()).result(SECONDS) == LARGE
    assert refused == [CommitResult.INBOX_MOVED]
    assert len(payloads(world)) == 1


async def test_a_run_that_continues_as_new_keeps_its_first_input_and_drops_results(
    world: Any,
) -> None:
    @world.step(name="make")
    async def make() -> str:
        return "x" * LARGE

    @world.workflow
    async def flow(given: str, generation: int = 1) -> int:
        if generation == 3:
            return len(given)
        await make()
        continue_as_new(given[:5], generation + 1)

    run = await flow.options(id="one").start("y" * LARGE)
    assert await run.result(SECONDS) == 5
    stored = await world.run("one")
    assert stored.past.input.payload in references_of(stored)
    await world.store.sweep_payloads()
    assert [kept.data[:30] for kept in payloads(world).values()] == [
        (await world.store.load_payload("one", stored.past.input.payload, "input"))[:30]
    ]
    assert (await flow.options(id="one").start("y" * LARGE)).id == "one"
    with pytest.raises(RunConflict):
        await flow.options(id="one").start("z" * LARGE)

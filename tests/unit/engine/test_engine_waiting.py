"""Sleeps, waits and messages: FEATURES W2 to W4 and W6; BEHAVIOURS 22 to 26."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import pytest
from engine_support import SECONDS, kinds_of, once_it_waits, until_status

from streamline import (
    InvalidState,
    PayloadTooLarge,
    RunAlreadyCompleted,
    RunCancelled,
    RunFailed,
    Status,
    ValidationError,
    channel,
    now,
    receive,
    sleep,
    sleep_until,
    wait,
)
from streamline.model import Message, MessageKind


@dataclass
class Approval:
    ok: bool
    by: str = "nobody"


# -- sleeps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("duration", ["1h", 3600, 3600.0, timedelta(hours=1)])
async def test_a_sleep_takes_what_it_says_and_the_code_after_it_runs(world, duration):
    """W2"""

    @world.workflow
    async def flow() -> float:
        began = now()
        await sleep(duration)
        return (now() - began).total_seconds()

    assert await (await flow.start()).result(SECONDS) == 3600


async def test_sleep_until_an_instant_a_past_one_does_not_wait(world):
    """W2"""
    at = world.clock.now() + timedelta(days=400)

    @world.workflow
    async def flow() -> list[bool]:
        await sleep_until(at - timedelta(days=4000))
        early = now() < at
        await sleep_until(at)
        return [early, now() >= at]

    assert await (await flow.start()).result(SECONDS) == [True, True]
    assert world.clock.now() - at < timedelta(seconds=1)


async def test_sleep_until_needs_an_aware_datetime(world):
    """W2"""

    @world.workflow
    async def flow() -> None:
        await sleep_until(now().replace(tzinfo=None))

    with pytest.raises(RunFailed, match="aware"):
        await (await flow.start()).result(SECONDS)


async def test_a_sleep_interrupted_by_a_restart_wakes_at_its_original_time(world):
    """W2, behaviour 22"""

    @world.workflow
    async def flow() -> str:
        await asyncio.sleep(100)
        return now().isoformat()

    began = world.clock.now()
    handle = await flow.start()
    await world.advance(60)
    await world.crash()
    await world.advance(39)
    assert await handle.status() is Status.WAITING
    await world.advance(1)
    assert await handle.result(SECONDS) == (began + timedelta(seconds=100)).isoformat()


async def test_a_sleep_due_during_downtime_fires_once_and_at_once(world):
    """Behaviour 22"""
    fired = []

    @world.step
    async def fire() -> None:
        fired.append(world.clock.now())

    @world.workflow
    async def flow() -> None:
        await sleep("1h")
        await fire()

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    world.process.die()
    world.clock.move_to(world.clock.now() + timedelta(days=3))
    back = world.clock.now()
    await world.crash()
    await handle.result(SECONDS)
    assert fired == [back]


async def test_a_cancelled_sleep_leaves_no_timer(world):
    """Behaviour 22"""

    @world.workflow
    async def flow() -> None:
        task = asyncio.create_task(asyncio.sleep(50))
        await asyncio.sleep(10)
        task.cancel()
        await receive("never")

    handle = await flow.start()
    await world.advance(20)
    assert (await handle.get()).due_at is None


async def test_a_deadline_holds_over_a_restart(world):
    """Behaviour 23: wait_for, timeout and a wait's own."""

    @world.workflow
    async def flow() -> list[float]:
        began = now()
        late = []
        for kind in ("wait_for", "timeout", "receive", "wait"):
            try:
                if kind == "wait_for":
                    await asyncio.wait_for(receive("never"), 100)
                elif kind == "timeout":
                    async with asyncio.timeout(100):
                        await receive("never")
                elif kind == "receive":
                    await receive("never", timeout=100)
                else:
                    await wait("never", timeout="100s")
            except TimeoutError:
                late.append((now() - began).total_seconds())
        return late

    handle = await flow.start()
    for _ in range(4):
        await world.advance(60)
        await world.crash()
        await world.advance(40)
    assert await handle.result(SECONDS) == [100, 200, 300, 400]


async def test_short_sleeps_do_not_park(world):
    """W2: a run whose timer is near stays in hand."""

    @world.workflow
    async def flow() -> None:
        for _ in range(5):
            await asyncio.sleep(0.1)

    handle = await flow.start()
    await handle.result(SECONDS)
    run = await handle.get()
    assert run.fence == 1
    assert kinds_of(run) == [("timer", f"sleep#{n}" if n > 1 else "sleep") for n in range(1, 6)]


# -- waits ------------------------------------------------------------------------------------


@pytest.fixture
def asking(world):
    @world.workflow(name="asking")
    async def asking() -> Approval:
        return await wait("May we?", {"total": 3}, name="boss", type=Approval)

    return asking


async def test_what_is_asked_shows_and_the_payload_comes_back_typed(world, asking):
    """W3"""
    handle = await asking.start()
    await until_status(handle, Status.WAITING)
    (slot,) = (await handle.get()).awaiting
    assert (slot.reason, slot.data, slot.name) == ("May we?", {"total": 3}, "boss")
    await handle.resume(Approval(True, "me"))
    assert await handle.result(SECONDS) == Approval(True, "me")
    assert (await handle.get()).awaiting == []


async def test_a_run_whose_step_goes_on_shows_its_wait_all_the_same(world):
    """W3"""
    go = asyncio.Event()

    @world.step
    async def busy() -> None:
        await go.wait()

    @world.workflow
    async def flow() -> int:
        _, answer = await asyncio.gather(busy(), wait("meanwhile", type=int))
        return answer

    handle = await flow.start()
    await once_it_waits(lambda: handle.resume(5))
    assert await handle.status() is Status.RUNNING
    go.set()
    assert await handle.result(SECONDS) == 5


async def test_a_payload_of_the_wrong_type_is_refused_at_the_sender(world, asking):
    """W3, behaviour 25: nothing is stored."""
    handle = await asking.start()
    await until_status(handle, Status.WAITING)
    before = world._shared.get(handle.id)
    with pytest.raises(ValidationError, match=f"'boss' of run '{handle.id}'"):
        await handle.resume({"ok": "perhaps"})
    assert world._shared.get(handle.id) == before
    await handle.resume({"ok": True})
    assert await handle.result(SECONDS) == Approval(True)


async def test_several_waits_are_told_apart_by_name(world):
    """W3"""

    @world.workflow
    async def flow() -> list[int]:
        return await asyncio.gather(
            wait("a?", name="a", type=int), wait("b?", name="b", type=int), wait("c?", type=int)
        )

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    with pytest.raises(InvalidState, match="several"):
        await handle.resume(1)
    with pytest.raises(InvalidState, match="'d'"):
        await handle.resume(1, name="d")
    await handle.resume(2, name="b")
    await handle.resume(1, name="a")
    await once_it_waits(lambda: handle.resume(3))
    assert await handle.result(SECONDS) == [1, 2, 3]


async def test_a_resume_of_a_run_that_does_not_wait_is_refused(world, asking):
    """W4"""

    @world.workflow
    async def flow() -> None:
        await sleep("1h")

    sleeping = await flow.start()
    await until_status(sleeping, Status.WAITING)
    with pytest.raises(InvalidState, match="not waiting"):
        await sleeping.resume(1)
    ended = await asking.start()
    await until_status(ended, Status.WAITING)
    await ended.resume(Approval(True))
    await ended.wait(SECONDS)
    with pytest.raises(RunAlreadyCompleted, match="ended as done"):
        await ended.resume(Approval(True))


async def test_of_two_resumes_at_once_one_wins(world, asking):
    """W4"""
    handle = await asking.start()
    await until_status(handle, Status.WAITING)
    results = await asyncio.gather(
        *(handle.resume(Approval(True, str(n))) for n in range(4)), return_exceptions=True
    )
    winner = results.index(None)
    assert sum(isinstance(result, InvalidState) for result in results) == 3
    assert (await handle.result(SECONDS)).by == str(winner)


async def test_a_wait_that_timed_out_can_not_be_resumed(world):
    """W3, W4"""

    @world.workflow
    async def flow() -> str:
        try:
            return await wait("quick!", type=str, timeout="1h")
        except TimeoutError:
            await sleep("1h")
            return "too late"

    handle = await flow.start()
    await world.advance("1h")
    with pytest.raises(InvalidState):
        await handle.resume("late")
    assert await handle.result(SECONDS) == "too late"


async def test_a_resume_that_comes_as_the_timeout_is_written_wins_or_is_refused(world):
    """W4, behaviour 25: the commit that closes the slot finds the message."""

    @world.workflow
    async def flow() -> str:
        try:
            return await wait("quick!", type=str, timeout="1h")
        except TimeoutError:
            return "timeout"

    results = []

    def resume_first(commit):
        if commit.awaiting == () and not results:
            results.append(_post_resume(world, commit.run_id))
        return False

    world.process.mortal_store.before_commit = resume_first
    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    await world.advance("1h")
    assert results == ["posted"]
    assert await handle.result(SECONDS) == "resumed"
    assert [entry.id for entry in (await handle.get()).journal] == ["wait"]


def _post_resume(world, run_id):
    message = Message(
        id="m", kind=MessageKind.RESUME, at=world.clock.now(), name="wait", payload="resumed"
    )
    return _at_once(world._store.post(run_id, message, slot="wait")).value


def _at_once(coroutine):
    """Run a verb of the memory store within a hook: it never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the store waited")


async def test_a_park_that_races_a_message_does_not_miss_it(world):
    """Behaviour 25: no lost wake-up."""

    @world.workflow
    async def flow() -> str:
        return await receive("box", type=str)

    posted = []

    def post_first(commit):
        if commit.status is Status.WAITING and not posted:
            message = Message(
                id="m", kind=MessageKind.SEND, at=world.clock.now(), name="box", payload="hi"
            )
            posted.append(_at_once(world._store.post(commit.run_id, message)))
        return False

    world.process.mortal_store.before_commit = post_first
    handle = await flow.start()
    assert await handle.result(SECONDS) == "hi"
    assert posted


# -- the mailbox ------------------------------------------------------------------------------


@pytest.fixture
def reader(world):
    @world.workflow(name="reader")
    async def reader(n: int) -> list[int]:
        await sleep("1h")
        return [await receive("box", type=int) for _ in range(n)]

    return reader


async def test_messages_are_kept_in_order_also_when_sent_early(world, reader):
    """W6, behaviour 24"""
    handle = await reader.start(4)
    for n in range(3):
        await handle.send("box", n)
    await world.advance("1h")
    await world.crash()
    await handle.send("box", 3)
    assert await handle.result(SECONDS) == [0, 1, 2, 3]


async def test_a_message_to_a_draft_is_kept(world, reader):
    """W6"""
    handle = await reader.options(delay="1d").start(1)
    await handle.send("box", 7)
    assert await handle.status() is Status.DRAFT
    assert await handle.result(SECONDS) == [7]


async def test_a_repeated_id_counts_once_also_after_it_was_taken(world, reader):
    """W6, behaviour 24"""
    handle = await reader.start(2)
    await handle.send("box", 1, id="m-1")
    await handle.send("box", 1, id="m-1")
    await world.advance("1h")
    assert (await handle.get()).inbox == []
    await handle.send("box", 1, id="m-1")
    await handle.send("box", 2, id="m-2")
    assert await handle.result(SECONDS) == [1, 2]


async def test_channels_are_kept_apart(world):
    """W6"""

    @world.workflow
    async def flow() -> list[str]:
        second = await receive("b", type=str)
        return [await receive("a", type=str), second]

    handle = await flow.start()
    await handle.send("a", "A")
    await handle.send("b", "B")
    assert await handle.result(SECONDS) == ["A", "B"]


async def test_two_receivers_of_one_channel_are_served_in_their_order(world):
    """W6"""

    @world.workflow
    async def flow() -> list[int]:
        return await asyncio.gather(*(receive("box", type=int) for _ in range(3)))

    handle = await flow.start()
    for n in range(3):
        await handle.send("box", n)
    assert await handle.result(SECONDS) == [0, 1, 2]


async def test_a_channel_can_be_iterated(world):
    """W6"""

    @world.workflow
    async def flow() -> int:
        total = 0
        async for message in channel("numbers", type=int):
            if message < 0:
                return total
            total += message
        return -1

    async def speak(handle):
        for n in (1, 2, 3, -1):
            await handle.send("numbers", n)

    assert await world.crash_everywhere_with(flow.start, speak) == 6


async def test_a_message_of_another_type_fails_the_receive_and_is_taken(world):
    """W6: the sender could not know."""

    @world.workflow
    async def flow() -> list[object]:
        await sleep("1h")
        try:
            await receive("box", type=int)
        except ValidationError as error:
            return [str(error), await receive("box", type=int)]
        return []

    handle = await flow.start()
    await handle.send("box", "no number")
    await handle.send("box", 2)
    message, value = await handle.result(SECONDS)
    assert handle.id in message
    assert value == 2


async def test_a_message_to_an_open_receive_is_checked_at_the_sender(world, reader):
    """W6, behaviour 25"""
    handle = await reader.start(1)
    await world.advance("1h")
    with pytest.raises(ValidationError):
        await handle.send("box", "no number")
    await handle.send("box", 1)
    assert await handle.result(SECONDS) == [1]


async def test_a_message_to_an_ended_run_is_refused(world, reader):
    """W6"""
    handle = await reader.start(0)
    await handle.wait(SECONDS)
    with pytest.raises(RunAlreadyCompleted, match="not stored"):
        await handle.send("box", 1)


async def test_a_full_mailbox_refuses_and_says_what_to_do(world, reader):
    """W6, E1"""
    world._store._runs.inbox_limit = 1000
    handle = await reader.start(1)
    for n in range(8):
        await handle.send("box", n)
    with pytest.raises(PayloadTooLarge, match="mailbox of run"):
        await handle.send("box", "x" * 300)
    assert (await handle.result(SECONDS)) == [0]


async def test_a_cancel_and_a_pause_get_through_a_full_mailbox(world, reader):
    """C1, C3: an operator must be able to stop a run whatever others send to it."""
    world._store._runs.inbox_limit = 300
    handle = await reader.start(9)
    await until_status(handle, Status.WAITING)
    await handle.send("other", "x" * 150)
    with pytest.raises(PayloadTooLarge, match="mailbox of run"):
        await handle.send("other", "x" * 150)
    for _ in range(3):
        await handle.pause("because of reasons " * 10)
    await until_status(handle, Status.PAUSED)
    for _ in range(3):
        await handle.cancel("because of reasons " * 10)
    with pytest.raises(RunCancelled, match="because of reasons"):
        await handle.result(SECONDS)


async def test_a_reason_is_no_way_to_fill_an_inbox(reader):
    """A cancel always has room; so what it carries must be small."""
    handle = await reader.start(9)
    for call in (handle.cancel, handle.pause, handle.terminate):
        with pytest.raises(PayloadTooLarge, match="the reason given for run"):
            await call("x" * 20_000)
    assert (await handle.get()).inbox == []


async def test_a_crash_between_taking_and_recording_gives_the_same_message(world, reader):
    """Behaviour 24"""

    async def speak(handle):
        for n in range(3):
            await handle.send("box", n, id=f"m-{n}")

    result = await world.crash_everywhere_with(lambda: reader.start(3), speak)
    assert result == [0, 1, 2]


async def test_a_receive_and_its_timeout_in_one_moment_are_one_of_them(world):
    """Behaviour 26: the same on replay."""

    @world.workflow
    async def flow() -> str:
        try:
            first = await receive("box", type=str, timeout="1h")
        except TimeoutError:
            first = "timeout"
        await sleep("1d")
        return first

    handle = await flow.start()
    await until_status(handle, Status.WAITING)
    world.clock.move_to(world.clock.now() + timedelta(hours=1))
    await handle.send("box", "message")
    await world.settle()
    await world.crash()
    run = await world.run(handle.id)
    assert await handle.result(SECONDS) == "message"
    assert ("message", "receive:box") in kinds_of(run)
    assert ("timer", "timeout") not in kinds_of(run)


async def test_a_message_whose_receive_timed_out_is_kept_for_the_next(world):
    """W6, behaviour 26"""

    @world.workflow
    async def flow() -> list[str]:
        try:
            await receive("box", type=str, timeout="1h")
        except TimeoutError:
            return ["timeout", await receive("box", type=str)]
        return []

    handle = await flow.start()
    await world.advance("1h")
    await handle.send("box", "late")
    assert await handle.result(SECONDS) == ["timeout", "late"]


async def test_a_parked_run_that_was_evicted_goes_on_when_it_is_resumed(world, asking):
    """Behaviour 32, W3"""
    world.process.worker._parked.size = 1
    handles = [await asking.start() for _ in range(3)]
    await world.settle()
    assert world.process.worker.cached == 1
    for handle in handles:
        await handle.resume(Approval(True))
    assert [(await handle.result(SECONDS)).ok for handle in handles] == [True] * 3


async def test_a_message_from_another_process_wakes_a_cached_run(world, asking):
    """W3, H3"""
    handle = await asking.start()
    await until_status(handle, Status.WAITING)
    other = await world.another_worker()
    await other.control.resume_run(handle.id, Approval(True), None)
    assert (await handle.result(SECONDS)).ok

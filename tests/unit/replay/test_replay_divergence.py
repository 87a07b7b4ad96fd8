"""Code that no longer fits a journal says at which entry, what is recorded and what was asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from replay_player import Recording, assert_replays, play, replay, step, workflow

from streamline import context as run
from streamline.errors import NonDeterminism, ValidationError
from streamline.model import Entry, EntryKind
from streamline.replay import CANCEL


@step
def charge(value: int = 1) -> Any:
    return value * 10


@step
def ship(value: int = 1) -> int:
    return value + 1


@workflow
async def two_steps() -> int:
    total: int = await charge(1) + await ship(1)
    return total


def _diverges(recording: Recording, flow: Any) -> NonDeterminism:
    with pytest.raises(NonDeterminism) as raised:
        replay(recording, flow)
    assert raised.value.run_id == "run-1"
    return raised.value


def test_a_renamed_step_is_told() -> None:
    @workflow
    async def renamed() -> None:
        await step(name="bill")(lambda: 1)()
        await ship()

    error = _diverges(play(two_steps), renamed)
    assert (error.position, error.recorded, error.asked) == (0, "charge", ("bill",))
    assert str(error).startswith(
        "Run 'run-1' diverged at entry 0: recorded step 'charge', the code asked for 'bill' "
        "(it began under Python 3.x). Restore the old order"
    )


def test_reordered_steps_are_told() -> None:
    @workflow
    async def reordered() -> None:
        await ship()
        await charge()

    error = _diverges(play(two_steps), reordered)
    assert (error.position, error.recorded, error.asked) == (0, "charge", ("ship",))


def test_a_removed_step_is_told() -> None:
    @workflow
    async def removed() -> None:
        await charge()
        await charge()

    error = _diverges(play(two_steps), removed)
    assert (error.position, error.recorded, error.asked) == (1, "ship", ("charge#2",))


def test_a_body_that_ends_before_its_journal_is_told() -> None:
    @workflow
    async def shorter() -> None:
        await charge()

    error = _diverges(play(two_steps), shorter)
    assert (error.position, error.recorded, error.asked) == (1, "ship", ("the end of the run",))


def test_a_step_that_became_a_timer_is_told() -> None:
    @workflow
    async def before() -> None:
        await step(name="sleep")(lambda: 1)()

    @workflow
    async def after() -> None:
        await asyncio.sleep(1)

    error = _diverges(play(before), after)
    assert (error.position, error.recorded, error.asked) == (0, "sleep", ("sleep",))
    error = _diverges(play(after), before)
    assert "recorded timer 'sleep', the code asked for a step of that name" in str(error)


def test_a_receive_of_another_channel_is_told() -> None:
    def receiving(channel: str) -> Any:
        async def flow() -> Any:
            return await run.receive(channel)

        return workflow(flow)

    recording = play(receiving("orders"), messages=[("orders", 1)])
    error = _diverges(recording, receiving("bills"))
    assert (error.recorded, error.asked) == ("receive:orders", ("receive:bills",))


def test_a_failed_attempt_of_a_step_that_is_not_asked_for_is_told() -> None:
    recording = play(two_steps)
    attempt = Entry(
        id="charge", kind=EntryKind.ATTEMPT, at=recording.journal[0].at, fence=1, attempt=1
    )
    recording.journal.insert(0, attempt)
    replay(recording)

    @workflow
    async def renamed() -> None:
        await ship()

    assert _diverges(recording, renamed).recorded == "charge"


def test_more_steps_at_once_are_no_divergence() -> None:
    @workflow
    async def wider() -> None:
        await asyncio.gather(charge(), run.sleep(1), step(name="other")(lambda: 1)())
        await ship()

    replay(play(two_steps), wider, upto=1)


@pytest.mark.parametrize("written", [lambda: charge(1), lambda: charge(value=1), lambda: charge()])
def test_another_way_to_write_a_call_is_no_divergence(written: Any) -> None:
    @workflow
    async def rewritten() -> int:
        total: int = await written() + await ship(1)
        return total

    assert replay(play(two_steps), rewritten).value == 12


def test_a_result_that_no_longer_has_its_type_pauses() -> None:
    @workflow
    async def typed() -> None:
        def retyped() -> dict[str, int]:
            return {}

        await step(name="charge")(retyped)()

    error = _diverges(play(two_steps), typed)
    assert (error.position, error.recorded, error.step) == (0, "charge", "charge")
    assert isinstance(error.__cause__, ValidationError)
    assert "unpause" in str(error)


def test_an_entry_applied_live_diverges_the_same() -> None:
    execution = play(two_steps).execution
    with pytest.raises(NonDeterminism, match="the end of the run"):
        execution.apply(
            Entry(id="charge#2", kind=EntryKind.STEP, at=execution.now(), fence=1, value=1)
        )


def test_a_cancel_never_diverges() -> None:
    execution = play(two_steps).execution
    execution.apply(Entry(id=CANCEL, kind=EntryKind.MESSAGE, at=execution.now(), fence=1))
    assert execution.outcome is not None


# -- patched() ------------------------------------------------------------------------------------


@workflow
async def patched_flow() -> list[Any]:
    found = [await charge(1)]
    for _ in range(2):
        found.append(await ship(1) if run.patched("ship") else await charge(2))
    found.append(run.patched("ship"))
    return found


@workflow
async def old_flow() -> list[Any]:
    return [await charge(1), await charge(2), await charge(2)]


def test_a_new_run_takes_the_new_side_and_remembers_it() -> None:
    recording = play(patched_flow)
    assert recording.value == [10, 2, 2, True]
    patches = [entry.id for entry in recording.journal if entry.kind is EntryKind.PATCH]
    assert patches == ["ship"]


def test_an_old_run_takes_the_old_side_throughout() -> None:
    recording = play(old_flow)
    for upto in (1, 2):
        again = replay(recording, patched_flow, upto=upto)
        for entry in recording.journal[upto:]:
            again.execution.apply(entry)
        assert again.execution.outcome is not None
        assert again.execution.outcome.value == [10, 20, 20, False]  # type: ignore[union-attr]
        assert again.execution.new_patches == []


def test_a_run_that_had_not_got_there_takes_the_new_side() -> None:
    recording = play(old_flow)
    again = replay(recording, patched_flow, upto=0)
    again.execution.apply(recording.journal[0])
    assert again.execution.new_patches == ["ship"]
    assert list(again.execution.open) == ["ship"]


def test_a_deprecated_patch_goes_on_with_runs_that_recorded_it() -> None:
    @workflow
    async def after() -> list[Any]:
        found = [await charge(1)]
        run.deprecate_patch("ship")
        return [*found, await ship(1), await ship(1)]

    assert replay(play(patched_flow), after).value == [10, 2, 2]


def test_a_patch_asked_in_the_first_turn_is_recorded_before_any_entry() -> None:
    @workflow
    async def flow() -> bool:
        new = run.patched("first")
        await charge()
        return new and run.patched("first")

    recording = play(flow)
    assert recording.journal[0].kind is EntryKind.PATCH
    assert recording.value is True
    assert_replays(recording)

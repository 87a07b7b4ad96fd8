"""Cancels, the run's own timeout, and cleanup that is as durable as the rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest
from replay_player import Player, Recording, assert_replays, make_run, play, replay, step, workflow

from streamline import context as run
from streamline.model import Entry, EntryKind
from streamline.replay import CANCEL, Cancelled, Execution, Failed, StepCommand


@step
def charge(value: int = 1) -> int:
    return value * 10


@step
def refund(value: int = 1) -> int:
    return -value


@step
def fail() -> None:
    raise ValueError("failed")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_cleanup_is_durable_and_replays(after: int) -> None:
    @workflow
    async def flow() -> None:
        try:
            await charge()
            await asyncio.sleep(60)
            await charge()
        except asyncio.CancelledError as error:
            if error.args != ("because",):
                raise RuntimeError(error.args) from error
            await refund(1)
            await asyncio.sleep(1)
            raise
        finally:
            await refund(2)

    recording = play(flow, cancel_after=after)
    assert isinstance(recording.outcome, Cancelled)
    assert recording.ids[-3:-1] == ["refund", f"sleep#{2 if after else 1}" if after else "sleep"]
    assert recording.ids[-1] == "refund#2"
    assert recording.execution.cancel_reason == "because"


def test_a_cancel_before_the_first_step_ends_withdraws_it() -> None:
    @workflow
    async def flow() -> None:
        await charge()

    recording = play(flow, cancel_after=0)
    assert isinstance(recording.outcome, Cancelled)
    assert recording.turns[-1].withdrawn == ("charge",)


def test_a_swallowed_cancel_is_not_delivered_twice() -> None:
    @workflow
    async def flow() -> list[int]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return [await charge(1), await charge(2)]

    recording = play(flow, cancel_after=0)
    assert recording.value == [10, 20]


def test_a_second_cancel_interrupts_the_cleanup() -> None:
    @workflow
    async def flow() -> None:
        try:
            await charge()
        finally:
            await refund()

    recording = Player(flow, cancel_after=0, max_entries=1).play()
    again = Entry(id=CANCEL, kind=EntryKind.MESSAGE, at=recording.execution.now(), fence=1)
    recording.execution.apply(again)
    assert isinstance(recording.execution.outcome, Cancelled)


def test_a_cancel_before_the_body_began_is_harmless() -> None:
    flow = workflow(name="flow")(_plain)
    execution = Execution(make_run(flow), flow, limit=1000)
    execution.apply(Entry(id=CANCEL, kind=EntryKind.MESSAGE, at=execution.now(), fence=1))
    assert execution.outcome is None
    execution.evict()


async def _plain() -> int:
    value: int = await charge()
    return value


def test_a_shielded_step_ends_after_the_cancel_and_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @workflow
    async def flow(failing: bool) -> None:
        await asyncio.shield(fail() if failing else charge())

    caplog.set_level(logging.DEBUG)
    for failing in (True, False):
        recording = Player(flow, failing, cancel_after=0).play()
        assert isinstance(recording.outcome, Cancelled)
        (left,) = recording.execution.open.values()
        assert isinstance(left, StepCommand)
        entry = Player(flow, False)._step_ended(left)
        recording.execution.apply(entry)
        assert isinstance(recording.execution.outcome, Cancelled)
        assert not recording.execution.open
        replay(
            Recording(
                recording.run, flow, [*recording.journal, entry], [], None, recording.execution
            )
        )
        recording.execution.evict()
    assert caplog.records == []


def test_a_body_that_cancels_itself_is_cancelled_without_a_cancel() -> None:
    @workflow
    async def flow() -> None:
        task = asyncio.create_task(charge())
        await asyncio.sleep(0)
        task.cancel()
        await task

    recording = play(flow)
    assert isinstance(recording.outcome, Cancelled)
    assert recording.execution.cancel_reason is None


def test_a_cancel_reaches_all_branches() -> None:
    @workflow
    async def flow() -> None:
        async def branch(number: int) -> None:
            try:
                await charge(number)
            finally:
                await refund(number)

        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(branch(number))

    recording = play(flow, cancel_after=2)
    assert isinstance(recording.outcome, Cancelled)
    assert len([id_ for id_ in recording.ids if id_.startswith("refund")]) == 10


# -- the run's timeout ----------------------------------------------------------------------------


@workflow(timeout="1h")
async def slow() -> str:
    try:
        await asyncio.sleep(7200)
    finally:
        await refund()
    return "done"


def test_a_run_that_takes_too_long_fails_after_its_cleanup() -> None:
    recording = play(slow)
    assert isinstance(recording.error, TimeoutError)
    assert "'run-1'" in str(recording.error)
    assert recording.ids == ["deadline", "sleep", "refund"]


def test_a_run_that_ends_in_time_has_no_deadline_left() -> None:
    recording = play(workflow(name="flow", timeout="1h")(_plain), first=["charge"])
    assert recording.value == 10
    assert recording.turns[-1].withdrawn == ("deadline",)


def test_a_cancel_is_no_timeout() -> None:
    assert isinstance(play(slow, cancel_after=0, first=["refund"]).outcome, Cancelled)


def test_a_timeout_of_the_body_inside_the_runs_timeout_is_its_own() -> None:
    @workflow(timeout="1h")
    async def flow() -> str:
        try:
            async with asyncio.timeout(1):
                await charge()
        except TimeoutError:
            return "inner"
        return ""

    assert play(flow, first=["timeout"]).value == "inner"


# -- on_failure -----------------------------------------------------------------------------------


def _handled(handler: Any, **options: Any) -> Any:
    async def flow() -> None:
        await fail()

    return workflow(name="flow", on_failure=handler, **options)(flow)


def test_on_failure_is_durable_and_the_error_stays() -> None:
    async def handler(error: Exception) -> None:
        assert isinstance(error, ValueError)
        await refund()
        await run.sleep(60)
        await refund()

    recording = play(_handled(handler))
    assert isinstance(recording.error, ValueError)
    assert recording.ids == ["fail", "refund", "sleep", "refund#2"]


def test_an_error_of_on_failure_takes_the_place_of_the_first() -> None:
    async def handler(error: Exception) -> None:
        raise KeyError("worse")

    recording = play(_handled(handler))
    assert isinstance(recording.error, KeyError)
    assert isinstance(recording.error.__context__, ValueError)


def test_on_failure_is_not_called_for_a_cancel() -> None:
    async def handler(error: Exception) -> None:
        await refund()

    recording = play(_handled(handler), cancel_after=0)
    assert isinstance(recording.outcome, Cancelled)
    assert recording.ids == ["fail"]


def test_on_failure_after_a_timeout_may_use_groups_and_timeouts() -> None:
    seen: list[str] = []

    async def handler(error: Exception) -> None:
        assert isinstance(error, TimeoutError)
        try:
            async with asyncio.timeout(5):
                await charge()
        except TimeoutError:
            seen.append("timeout")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                group.create_task(asyncio.sleep(60))
        except* ValueError:
            seen.append("group")

    async def flow() -> None:
        await asyncio.sleep(7200)

    recording = Player(
        workflow(name="flow", timeout="1h", on_failure=handler)(flow),
        first=["deadline", "timeout", "fail"],
    ).play()
    assert isinstance(recording.outcome, Failed)
    assert isinstance(recording.error, TimeoutError)
    assert seen == ["timeout", "group"]
    assert_replays(recording)

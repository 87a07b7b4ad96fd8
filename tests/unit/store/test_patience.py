"""`Patience` ends calls as `asyncio.timeout` does, with one timer for all of them."""

from __future__ import annotations

import asyncio

import pytest

from streamline.store.patience import Patience

FOR_EVER = 60.0


async def _call(patience: Patience, seconds: float) -> str:
    with patience.call():
        await asyncio.sleep(seconds)
    return "in time"


async def test_a_call_that_takes_too_long_ends_with_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        await _call(Patience(0.01), FOR_EVER)


async def test_a_call_in_time_returns() -> None:
    assert await _call(Patience(FOR_EVER), 0) == "in time"


async def test_each_of_many_calls_has_its_own_time() -> None:
    patience = Patience(0.15)
    loop = asyncio.get_running_loop()

    async def late() -> float:
        await asyncio.sleep(0.1)
        began = loop.time()
        with pytest.raises(TimeoutError):
            await _call(patience, FOR_EVER)
        return loop.time() - began

    short = [asyncio.create_task(_call(patience, 0)) for _ in range(5)]
    long = asyncio.create_task(_call(patience, FOR_EVER))
    # The timer that was set for the first of them must not end it early, nor leave it for ever.
    assert await late() >= 0.149
    assert [await task for task in short] == ["in time"] * 5
    with pytest.raises(TimeoutError):
        await long


async def test_a_call_after_a_silence_has_a_timer_again() -> None:
    patience = Patience(0.01)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await _call(patience, FOR_EVER)
        await asyncio.sleep(0.02)  # the timer finds nothing under way


def test_a_call_in_another_event_loop_has_a_timer_there() -> None:
    patience = Patience(0.05)
    asyncio.run(_call(patience, 0))  # its loop is closed before the timer fires
    with pytest.raises(TimeoutError):
        asyncio.run(_call(patience, FOR_EVER))


async def test_a_call_that_swallows_its_cancellation_is_not_ended_twice() -> None:
    patience = Patience(0.01)
    ended = 0
    with patience.call() as call:
        for _ in range(3):
            try:
                await asyncio.sleep(0.03)
            except asyncio.CancelledError:
                ended += 1
    assert ended == 1
    assert call.expired
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling(), "the timeout's own cancellation was taken back"


async def test_whoever_cancels_the_task_is_not_told_of_a_timeout() -> None:
    task = asyncio.create_task(_call(Patience(FOR_EVER), FOR_EVER))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancel_beside_a_timeout_stays_a_cancel() -> None:
    patience = Patience(FOR_EVER)

    async def both() -> None:
        with patience.call() as call:
            call.expire()
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(FOR_EVER)

    task = asyncio.create_task(both())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_fault_of_the_call_goes_through() -> None:
    patience = Patience(FOR_EVER)
    with pytest.raises(ZeroDivisionError), patience.call():
        raise ZeroDivisionError

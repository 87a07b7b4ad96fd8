"""Ending tasks for sure."""

from __future__ import annotations

import asyncio

from streamline import tasks


async def test_a_task_that_loses_a_cancel_is_cancelled_again(monkeypatch):
    monkeypatch.setattr(tasks, "AGAIN", 0.01)
    lost = []

    async def loses_some():
        while len(lost) < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost.append("cancel")

    async def fails():
        raise OSError("gone")

    started = [asyncio.create_task(loses_some()), asyncio.create_task(fails())]
    await asyncio.sleep(0)
    await tasks.end(started)
    assert lost == ["cancel"] * 3
    assert all(task.done() for task in started)

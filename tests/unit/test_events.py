"""The event bus (O1)."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import pytest

from streamline.events import EVENT_NAMES, Event, EventBus

AT = datetime(2030, 1, 1, tzinfo=UTC)


def event(name="workflow:started", **fields):
    return Event(name=name, at=AT, **fields)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no event is named 'workflow:begun'"):
        EventBus().on("workflow:begun", print)


def test_listeners_hear_their_name_and_star_hears_all():
    bus, started, everything = EventBus(), [], []
    bus.on("workflow:started", started.append)
    bus.on("*", everything.append)
    for name in sorted(EVENT_NAMES):
        bus.emit(event(name))
    assert [heard.name for heard in started] == ["workflow:started"]
    assert [heard.name for heard in everything] == sorted(EVENT_NAMES)


def test_a_listener_may_take_itself_off_while_it_is_called():
    bus, heard = EventBus(), []

    def once(told):
        heard.append(told)
        off()

    off = bus.on("*", once)
    bus.on("*", heard.append)
    bus.emit(event())
    bus.emit(event())
    assert len(heard) == 3


def test_a_listener_that_raises_is_reported_once_and_the_others_hear(caplog):
    bus, heard, errors = EventBus(), [], []

    def bad(told):
        raise RuntimeError(told.name)

    bus.on("workflow:started", bad)
    bus.on("workflow:started", heard.append)
    bus.on("engine:error", bad)  # raises too: must not go round for ever
    bus.on("engine:error", errors.append)
    with caplog.at_level(logging.ERROR):
        bus.emit(event(run_id="r"))
    assert len(heard) == 1
    assert [(e.run_id, str(e.error)) for e in errors] == [("r", "workflow:started")]
    assert len(caplog.records) == 2


async def test_async_listeners_run_aside_and_can_be_drained(caplog):
    bus, heard = EventBus(), []

    async def slow(told):
        await asyncio.sleep(0.005)
        heard.append(told.name)
        if told.name == "workflow:started":
            bus.emit(event("workflow:completed"))
            raise RuntimeError("late")

    bus.on("workflow:started", slow)
    bus.on("workflow:completed", slow)
    with caplog.at_level(logging.CRITICAL):
        bus.emit(event())
        assert heard == []
        await bus.drain()
    assert heard == ["workflow:started", "workflow:completed"]


def test_without_listeners_nothing_is_done():
    EventBus().emit(event())

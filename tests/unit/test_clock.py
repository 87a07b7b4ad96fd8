"""Clocks: the system's, and the skipped one of tests."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from streamline.clock import SystemClock, from_seconds, to_milliseconds
from streamline.testing import SkippedClock


@given(st.datetimes(timezones=st.just(UTC)))
def test_instants_are_cut_to_milliseconds(instant):
    cut = to_milliseconds(instant)
    assert timedelta() <= instant - cut < timedelta(milliseconds=1)
    assert cut.microsecond % 1000 == 0


def test_seconds_become_aware_utc():
    assert from_seconds(1.2349) == datetime(1970, 1, 1, 0, 0, 1, 234_000, tzinfo=UTC)


def test_the_system_clock_says_the_time():
    now = SystemClock().now()
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=1)
    assert now.microsecond % 1000 == 0


def test_a_jump_of_the_wall_clock_does_not_move_it(monkeypatch):
    clock = SystemClock()
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert clock.now() - before < timedelta(seconds=1)


def test_it_can_be_set_by_a_server():
    clock = SystemClock()
    server = datetime(2040, 1, 1, tzinfo=UTC)
    steady = clock.steady()
    clock.set_by(server, sent=steady - 1, received=steady + 1)
    assert abs(clock.now() - server) < timedelta(seconds=1)


async def test_an_alarm_never_rings_early():
    clock = SystemClock()
    when = clock.now() + timedelta(milliseconds=15)
    rang = asyncio.get_running_loop().create_future()
    clock.call_at(when, lambda: rang.set_result(clock.now()))
    assert await rang >= when


async def test_a_cancelled_alarm_does_not_ring():
    clock, rang = SystemClock(), []
    alarm = clock.call_at(clock.now(), lambda: rang.append(1))
    alarm.cancel()
    alarm.cancel()
    await asyncio.sleep(0.005)
    assert rang == []


async def test_skipped_time_stands_still_until_it_is_moved():
    clock, rang = SkippedClock(), []
    start = clock.now()
    for minutes in (3, 1, 2):
        clock.call_at(
            start + timedelta(minutes=minutes), lambda minutes=minutes: rang.append(minutes)
        )
    cancelled = clock.call_at(start + timedelta(seconds=1), lambda: rang.append("never"))
    cancelled.cancel()
    assert clock.now() == start
    assert clock.next_alarm == start + timedelta(minutes=1)
    clock.move_to(start + timedelta(minutes=2))
    await asyncio.sleep(0)
    assert rang == [1, 2]
    clock.move_to(start)  # not to the past
    assert clock.now() == start + timedelta(minutes=2)


async def test_a_skipped_alarm_in_the_past_rings_at_the_next_turn():
    clock, rang = SkippedClock(), []
    clock.call_at(clock.now(), lambda: rang.append(1))
    assert rang == []
    await asyncio.sleep(0)
    assert rang == [1]
    assert clock.next_alarm is None

"""Where the engine gets its time from. The replay core never reads a clock.

Instants are aware UTC, cut to milliseconds: what BSON keeps, so that a value read back equals the
one written.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# CLOCK_BOOTTIME goes on while the host is suspended; elsewhere monotonic is the next best.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def from_seconds(seconds: float) -> datetime:
    """Return the instant of a POSIX time in seconds, cut to milliseconds."""
    # Whole milliseconds first: a float's own microseconds would round up now and then.
    return _from_milliseconds(int(seconds * 1000))


def _from_milliseconds(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(0, 0, milliseconds * 1000)


def to_milliseconds(instant: datetime) -> datetime:
    """Cut an instant to milliseconds."""
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)


class Alarm(Protocol):
    """A callback that is due at an instant."""

    def cancel(self) -> None:
        """Forget the callback; harmless once it ran."""
        ...


class Clock(ABC):
    """Time as the store's server sees it."""

    @abstractmethod
    def now(self) -> datetime:
        """Return the present instant, aware UTC, in whole milliseconds."""

    @abstractmethod
    def call_at(self, when: datetime, callback: Callable[[], object]) -> Alarm:
        """Run a callback in the running event loop once `now()` has reached `when`."""


class SystemClock(Clock):
    """A steady clock set by the server's time: a jump of this host's wall clock doesn't move it."""

    def __init__(self) -> None:
        self._offset = time.time() - time.clock_gettime(_STEADY)
        # One tuple, so that the thread that renews leases never sees half of it.
        self._latest = (0, _EPOCH)

    def now(self) -> datetime:
        milliseconds = int((time.clock_gettime(_STEADY) + self._offset) * 1000)
        latest = self._latest
        if latest[0] != milliseconds:
            latest = self._latest = (milliseconds, _from_milliseconds(milliseconds))
        return latest[1]

    def set_by(self, server: datetime, *, sent: float, received: float) -> None:
        """Set the clock by a server's time.

        Args:
            server: What the server said.
            sent: `steady()` before the question.
            received: `steady()` after the answer; the server spoke half-way between the two.
        """
        self._offset = server.timestamp() - (sent + received) / 2

    @staticmethod
    def steady() -> float:
        """Return the steady clock that `set_by` refers to, in seconds."""
        return time.clock_gettime(_STEADY)

    def call_at(self, when: datetime, callback: Callable[[], object]) -> Alarm:
        # One millisecond on top: `now()` is cut downwards, and an early alarm is a wasted turn.
        delay = (when - self.now()).total_seconds() + 0.001
        return asyncio.get_running_loop().call_later(max(0.0, delay), callback)

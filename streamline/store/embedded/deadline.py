"""A point in time that blocking code, in a thread, waits up to."""

from __future__ import annotations

import time

from streamline.errors import ServerUnavailable

_POLL_S = 0.005


class Deadline:
    """A bound for a series of waits, which another thread may bring forward.

    Args:
        seconds: How far it is from now.
    """

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._at - time.monotonic())

    def expire(self) -> None:
        """End it now, so that whoever waits gives up."""
        self._at = 0.0

    def pause(self, waiting_for: str) -> None:
        """Sleep for one polling interval.

        Raises:
            ServerUnavailable: The deadline has passed; the message is `waiting_for`.
        """
        if not self.remaining_s:
            raise ServerUnavailable(waiting_for)
        time.sleep(_POLL_S)

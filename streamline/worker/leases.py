"""`LeaseKeeper`: a thread that renews a worker's leases and watches over its event loop.

In a thread, so that a body that blocks the loop costs only its own run: the others' leases are
renewed, the blocking run's is not, and its stack is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import FrameType

from streamline.store import Renewal, RunStore

_log = logging.getLogger(__name__)

STOP_GRACE = 5.0
"""Seconds that a renewal in flight gets when the worker stops."""


class LeaseKeeper:
    """Renews the leases of one worker every third of their length.

    Args:
        store: Where the claims are.
        worker: The worker's id.
        lease: The length of a lease in seconds.
        held: Returns run id -> fence of all claims; called in the thread.
        on_renewal: Called in the event loop with what was asked, what was found, and until when
            the leases hold.
        on_lapse: Called in the event loop once all leases must have run out unrenewed.
        blocked_after: Seconds without a turn of the event loop before its stack is logged.
    """

    def __init__(
        self,
        store: RunStore,
        worker: str,
        lease: float,
        *,
        held: Callable[[], Mapping[str, int]],
        on_renewal: Callable[[Mapping[str, int], Renewal, datetime], None],
        on_lapse: Callable[[], None],
        blocked_after: float,
    ) -> None:
        self._store = store
        self._worker = worker
        self._lease = lease
        self._held = held
        self._on_renewal = on_renewal
        self._on_lapse = on_lapse
        self._blocked_after = blocked_after
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._turned_at = time.monotonic()
        self._ping_pending = False
        self._reported = False
        self._renewed_at = time.monotonic()
        self._stopped = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="streamline-leases", daemon=True)
        self.active_run: str | None = None
        """The run whose body is being turned at this moment; set by the event loop's thread."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; waits until it has ended, at most for one renewal."""
        self._stopped.set()
        # Not joined in a thread of the loop's pool: that may be full of what others run there.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), STOP_GRACE)

    def _run(self) -> None:
        try:
            self._keep()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._ended.set)

    def _keep(self) -> None:
        tick = min(self._lease / 3, self._blocked_after / 2, 1.0)
        next_renewal = time.monotonic() + self._lease / 3
        while not self._stopped.wait(tick):
            self._watch_loop()
            if time.monotonic() >= next_renewal:
                self._renew()
                next_renewal = time.monotonic() + self._lease / 3

    # -- leases -----------------------------------------------------------------------------------

    def _renew(self) -> None:
        held = dict(self._held())
        if self._reported and self.active_run is not None:
            # The run that blocks the loop: another worker may have it once its lease is over.
            held.pop(self.active_run, None)
        if not held:
            self._renewed_at = time.monotonic()
            return
        asked_at = time.monotonic()
        until = self._store.clock.now() + timedelta(seconds=self._lease)
        try:
            renewal = self._store.renew(self._worker, held, self._lease)
        except Exception as error:
            # Whatever it is: a thread that ended would let every lease run out from now on.
            _log.warning("can't renew %d leases of worker %s: %s", len(held), self._worker, error)
            if time.monotonic() - self._renewed_at > self._lease:
                self._call(self._on_lapse)
            return
        self._renewed_at = asked_at
        self._call(lambda: self._on_renewal(held, renewal, until))

    def _call(self, callback: Callable[[], None]) -> None:
        if not self._stopped.is_set() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    # -- the event loop ---------------------------------------------------------------------------

    def _watch_loop(self) -> None:
        if not self._ping_pending:
            self._ping_pending = True
            self._turned_at = time.monotonic()
            self._call(self._pong)
        elif not self._reported and time.monotonic() - self._turned_at > self._blocked_after:
            self._reported = True
            self._report()

    def _pong(self) -> None:
        self._ping_pending = False
        self._reported = False

    def _report(self) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        run = self.active_run
        who = f"the body of run {run!r}" if run is not None else "something in this process"
        _log.error(
            "the event loop has been blocked for %.1f s by %s; move blocking work into a plain "
            "`def` @step. Its stack:\n%s",
            time.monotonic() - self._turned_at,
            who,
            _stack(frame),
        )


def _stack(frame: FrameType | None) -> str:
    return "(gone)" if frame is None else "".join(traceback.format_stack(frame))

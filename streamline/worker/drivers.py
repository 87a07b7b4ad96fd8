"""`Drivers`: the runs that one worker drives, and what becomes known of its claims on them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from datetime import datetime
from typing import Any

from streamline.model import Notice, Status
from streamline.store import Renewal
from streamline.worker.driver import RunDriver

_Task = asyncio.Task[Status | None]


class Drivers:
    """The drivers at work, by the ids of their runs, each with the task that it drives in.

    Args:
        keeps_time: Whether leases are renewed, and run out, by the clock; tests with skipped time
            renew by hand.
    """

    def __init__(self, *, keeps_time: bool) -> None:
        self._keeps_time = keeps_time
        self._drivers: dict[str, RunDriver] = {}
        self._tasks: dict[str, _Task] = {}

    def __len__(self) -> int:
        return len(self._drivers)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._drivers

    def get(self, run_id: str) -> RunDriver | None:
        """Return the driver of a run, if it is driven here."""
        return self._drivers.get(run_id)

    def task_of(self, run_id: str) -> _Task:
        """Return the task that a run is driven in; raises KeyError if it isn't driven here."""
        return self._tasks[run_id]

    def at_work(self) -> list[tuple[RunDriver, _Task]]:
        """Return all drivers and their tasks."""
        return [(driver, self._tasks[run_id]) for run_id, driver in self._drivers.items()]

    def start(
        self, driver: RunDriver, work: Coroutine[Any, Any, Status | None], lease: datetime | None
    ) -> _Task:
        """Let a driver begin its work, in a task of its own.

        Args:
            driver: Of a run that was claimed.
            work: What it does.
            lease: Until when the claim holds.
        """
        self._drivers[driver.id] = driver
        driver.held.lease_until = lease if self._keeps_time else None
        task = asyncio.get_running_loop().create_task(work, name=f"run {driver.id}")
        self._tasks[driver.id] = task
        return task

    def remove(self, driver: RunDriver) -> None:
        """Forget a driver whose work is done, unless the run has another by now."""
        if self._drivers.get(driver.id) is driver:
            del self._drivers[driver.id]
            del self._tasks[driver.id]

    @property
    def idle(self) -> bool:
        """Whether all only wait: for time or a message."""
        return all(driver.idle for driver in self._drivers.values())

    @property
    def quiet(self) -> bool:
        """Whether at most steps are running."""
        return all(driver.quiet for driver in self._drivers.values())

    def holds(self, run_id: str) -> bool:
        """Whether a run is driven here at present, so that its end will be told."""
        driver = self._drivers.get(run_id)
        return driver is not None and not driver.held.lost

    # -- claims -----------------------------------------------------------------------------------

    def fences(self) -> dict[str, int]:
        """Return run id -> fence of all claims held; from any thread."""
        return {run_id: driver.fence for run_id, driver in list(self._drivers.items())}

    def renewed(self, asked: Mapping[str, int], renewal: Renewal, until: datetime) -> None:
        """Take in what a renewal found of the claims that it asked for; they hold until then."""
        for run_id in renewal.lost:
            driver = self._drivers.get(run_id)
            # A run may have been parked and claimed again since: that claim is not the lost one.
            # Nor may one be whose own commit is raising its fence: what becomes of that tells.
            if driver is None or driver.fence != asked[run_id] or driver.held.continuing:
                continue
            driver.lose()
        for run_id, inbox_seq in renewal.inbox_seq.items():
            driver = self._drivers.get(run_id)
            if driver is not None and driver.fence == asked[run_id] and self._keeps_time:
                driver.extend(until)
            self.hint(run_id, inbox_seq)

    def notice(self, notice: Notice) -> bool:
        """Take a hint that a run changed; returns whether it is driven here."""
        driver = self._drivers.get(notice.run_id)
        if driver is None:
            return False
        if notice.fence is not None and notice.fence > driver.fence:
            driver.lose()
        elif notice.inbox_seq is not None:
            self.hint(notice.run_id, notice.inbox_seq)
        return True

    def hint(self, run_id: str, inbox_seq: int) -> None:
        """Take a hint that so many messages have come in for a run."""
        driver = self._drivers.get(run_id)
        if driver is not None and inbox_seq > driver.inbox_seq:
            driver.hint()

    def lose(self, run_id: str) -> None:
        """Take in that a claim is lost."""
        driver = self._drivers.get(run_id)
        if driver is not None:
            driver.lose()

    def lose_all(self) -> None:
        """Take in that all claims are lost."""
        for run_id in list(self._drivers):
            self.lose(run_id)

"""`ParkedRuns`: the bodies of runs that wait, in memory, to go on from without a replay."""

from __future__ import annotations

from collections import OrderedDict

from streamline.worker.driver import RunDriver


class ParkedRuns:
    """Keeps so many; those that were parked longest ago are dropped first.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self.size: int = size
        self._drivers: OrderedDict[str, RunDriver] = OrderedDict()

    def __len__(self) -> int:
        return len(self._drivers)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._drivers

    def keep(self, driver: RunDriver) -> None:
        """Keep a run that was parked."""
        self._drivers[driver.id] = driver
        while len(self._drivers) > self.size:
            self._drivers.popitem(last=False)[1].evict()

    def find(self, run_id: str) -> RunDriver | None:
        """Return a run that could go on, and keep it."""
        driver = self._drivers.get(run_id)
        return driver if driver is not None and driver.can_go_on else None

    def take(self, run_id: str) -> RunDriver | None:
        """Return a run, and keep it no longer."""
        return self._drivers.pop(run_id, None)

    def evict(self) -> None:
        """Drop all of them."""
        for driver in self._drivers.values():
            driver.evict()
        self._drivers.clear()

"""Processor time: this process's, and the whole machine's where the system tells it."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import msgspec


def cpu_seconds() -> float:
    """Return the processor time that this process has used, all its threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class BusyCores(msgspec.Struct):
    """How many cores have been busy on average since it was made; 0 where nothing tells."""

    began: float
    busy: float

    @classmethod
    def from_now(cls) -> BusyCores:
        """Begin to watch."""
        return cls(time.monotonic(), _busy_seconds())

    def mean(self) -> float:
        """Return how many cores were busy, of whatever process."""
        return (_busy_seconds() - self.busy) / (time.monotonic() - self.began)


def _busy_seconds() -> float:
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    ticks = [int(field) for field in fields]
    # user, nice, system, idle, iowait, irq, softirq, steal: all but the waiting ones.
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")

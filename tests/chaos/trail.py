"""What happened, as JSON lines in files of its own: no fault of the database touches them.

Each process appends whole lines with single writes, so that a SIGKILL loses nothing it had told.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

_REAL_CLOCK = time.CLOCK_REALTIME


def real_time() -> float:
    """Return the wall clock, also in a process whose `time.time` is made to jump."""
    return time.clock_gettime(_REAL_CLOCK)


class Trail:
    """One file of events, for appending."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, **event: Any) -> None:
        """Append an event, with the time."""
        line = json.dumps({"at": real_time(), "pid": os.getpid(), **event}, default=str)
        os.write(self._file, line.encode() + b"\n")


def read_trails(directory: Path, pattern: str) -> list[dict[str, Any]]:
    """Return the events of all matching files, in order of time; a torn last line is left out."""
    events = []
    for path in sorted(directory.glob(pattern)):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                events.append(json.loads(line))
    return sorted(events, key=lambda event: event["at"])

"""Who a worker is, told by its id: so that a process can see which workers of its host are dead.

An id is `host/boot/pid namespace/pid/start time/number`. Start time and boot make sure that a pid
used again isn't mistaken for the one that died. Where /proc is missing nothing is said to be dead,
and claims run out by their leases.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import sys
from pathlib import Path

import msgspec

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The minor version of Python that this process runs: runs note under which they began."""
_numbers = itertools.count(1)


class WorkerId(msgspec.Struct, frozen=True):
    """The parts of a worker's id; as text it is what documents hold."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    number: int = 0

    @classmethod
    def new(cls) -> WorkerId:
        """Return the id of another worker of this process."""
        return cls(*_place(), os.getpid(), _start_time(os.getpid()) or "", next(_numbers))

    @classmethod
    def parse(cls, text: str) -> WorkerId | None:
        """Read an id; None if it is of another form."""
        parts = text.split("/")
        if len(parts) != 6 or not (parts[3].isdigit() and parts[5].isdigit()):
            return None
        return cls(parts[0], parts[1], parts[2], int(parts[3]), parts[4], int(parts[5]))

    @staticmethod
    def neighbourhood() -> str | None:
        """Return what the ids begin with whose processes can be seen from here; None if nothing can
        be seen.
        """
        host, boot, namespace = _place()
        return f"{host}/{boot}/{namespace}/" if boot and namespace else None

    def __str__(self) -> str:
        return f"{self.host}/{self.boot}/{self.namespace}/{self.pid}/{self.started}/{self.number}"

    @property
    def is_local(self) -> bool:
        """Whether its process can be seen from here: it is of this host and namespace."""
        host, boot, namespace = _place()
        if not (boot and namespace and self.started):
            return False
        return (self.host, self.boot, self.namespace) == (host, boot, namespace)

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to be gone; false for other hosts and when in doubt."""
        return self.is_local and _start_time(self.pid) != self.started


@functools.cache
def _place() -> tuple[str, str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # As "pid:[4026531836]"; only the number goes into the id.
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        boot = namespace = ""
    return socket.gethostname().replace("/", "_"), boot, namespace


def _start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in brackets may hold spaces and brackets itself; what follows the last one doesn't.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]

"""Ways to servers by other ports: how a process is led through the proxies of the harness.

A driver finds the members of a set by their own addresses, so it can't be given those of proxies;
where a name is resolved the port is exchanged.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any


def detour(ways: Iterable[str]) -> None:
    """Lead this process's connections another way.

    Args:
        ways: `PORT=OTHER` each: what is for the first port goes to the other.
    """
    ports = dict(tuple(map(int, way.split("="))) for way in ways)  # type: ignore[misc]
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        return resolve(host, ports.get(port, port), *args, **options)

    socket.getaddrinfo = getaddrinfo

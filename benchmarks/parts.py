"""The parts of the benchmarks, in their order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from benchmarks import (
    fleet,
    latency,
    long_runs,
    memory,
    messages,
    scale,
    sleeps,
    starts,
    takeover,
    throughput,
)
from benchmarks.bench import Bench

PARTS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "latency": latency.measure,
    "throughput": throughput.measure,
    "starts": starts.measure,
    "messages": messages.measure,
    "sleeps": sleeps.measure,
    "long": long_runs.measure,
    "takeover": takeover.measure,
    "memory": memory.measure,
    "fleet": fleet.measure,
    "scale": scale.measure,
}

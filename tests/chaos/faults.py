"""Which faults come when: drawn from a seed before anything starts, so that it can be repeated."""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec


class Fault(msgspec.Struct, frozen=True):
    """One fault.

    Args:
        at: Seconds after the beginning.
        kind: A key of `KINDS`.
        target: The number of the process or proxy; what it means depends on how many there are.
        lasts: Seconds until it is healed.
    """

    at: float
    kind: str
    target: int
    lasts: float


class Kind(msgspec.Struct, frozen=True):
    """How often a kind of fault is drawn, and how long it lasts at least and at most."""

    weight: float
    shortest: float = 0.0
    longest: float = 0.0
    topologies: tuple[str, ...] = ("single", "set", "full")


KINDS: dict[str, Kind] = {
    "kill worker": Kind(4, 0.1, 2.0),
    "freeze worker": Kind(3, 0.5, 6.0),
    "kill client": Kind(2, 0.1, 1.0),
    "freeze client": Kind(1, 0.5, 5.0),
    "cut": Kind(2),
    "refuse": Kind(1, 0.5, 4.0),
    "slow": Kind(2, 1.0, 4.0),
    "stall": Kind(2, 0.5, 6.0),
    "lose": Kind(1, 0.5, 5.0),
    "deaf": Kind(2, 0.5, 4.0),
    "mute": Kind(1, 0.5, 4.0),
    "kill primary": Kind(2, 0.1, 3.0),
    "freeze primary": Kind(2, 0.3, 4.5),
    "step down": Kind(3, topologies=("set",)),
    "freeze secondary": Kind(1, 0.5, 4.0, topologies=("set",)),
    "kill secondary": Kind(1, 0.5, 4.0, topologies=("set",)),
    "full disk": Kind(3, 0.5, 3.0, topologies=("full",)),
}
CALM = (0.4, 3.5)
"""Seconds between the beginnings of two faults."""


def draw_schedule(
    seed: int, seconds: float, topology: str, *, kinds: Mapping[str, Kind] = KINDS
) -> list[Fault]:
    """Return the faults of a run, in order."""
    rng = random.Random(f"{seed}/{topology}/faults")
    names = [name for name, kind in kinds.items() if topology in kind.topologies]
    weights = [kinds[name].weight for name in names]
    schedule = []
    at = rng.uniform(1.0, 2.0)
    while at < seconds:
        name = rng.choices(names, weights)[0]
        lasts = rng.uniform(kinds[name].shortest, kinds[name].longest)
        fault = Fault(round(at, 3), name, rng.randrange(1000), round(lasts, 3))
        schedule.append(fault)
        at += rng.uniform(*CALM)
    return schedule

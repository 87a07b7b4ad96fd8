"""Recorded steps per second with many runs in flight, and the processor time of a run."""

from __future__ import annotations

import time

import msgspec

from benchmarks.bench import Bench
from benchmarks.figures import at_least, at_most, median
from benchmarks.processor import cpu_seconds
from benchmarks.slots import in_slots
from benchmarks.workflows import steps
from streamline import Streamline

LENGTH = 5
_RAW_UPDATES = 4000
_WAVES = 3
"""How many runs follow each other in a slot at least, so that filling and emptying count little."""


class _Rates(msgspec.Struct):
    """What each turn measured."""

    ours: list[float] = []
    raw: list[float] = []
    bare: list[float] = []
    cpu: list[float] = []


async def measure(bench: Bench) -> None:
    """Measure 5-step runs side by side, in turns with raw bulk writes of the same updates."""
    async with bench.engine() as engine:
        for in_flight in bench.sizes.in_flight:
            runs = max(bench.sizes.runs, _WAVES * in_flight)
            await side_by_side(engine, in_flight, in_flight)
            rates = _Rates()
            for _ in range(bench.sizes.turns):
                await _turn(bench, engine, in_flight, runs, rates)
            _report(bench, in_flight, rates)


async def side_by_side(engine: Streamline, runs: int, in_flight: int) -> tuple[float, float]:
    """Return runs per second, and the milliseconds of this process's processor time of a run."""

    async def one() -> None:
        await (await engine.start_run(steps, LENGTH)).result()

    cpu = cpu_seconds()
    began = time.perf_counter()
    await in_slots(one, runs, in_flight)
    seconds = time.perf_counter() - began
    return runs / seconds, (cpu_seconds() - cpu) / runs * 1000


async def _turn(bench: Bench, engine: Streamline, in_flight: int, runs: int, rates: _Rates) -> None:
    rounds = max(1, _RAW_UPDATES // (in_flight * LENGTH))
    rates.raw.append(await bench.raw.bulk(in_flight, rounds))
    rate, cpu = await side_by_side(engine, runs, in_flight)
    rates.ours.append(rate * LENGTH)
    rates.cpu.append(cpu)
    rates.bare.append(await bench.raw.bulk(in_flight, rounds, retryable=False))


def _report(bench: Bench, in_flight: int, rates: _Rates) -> None:
    figures, name = bench.figures, f"{in_flight} in flight"
    figures.add(f"{name}: raw bulk_write", median(rates.raw), "updates/s", system="raw")
    ratio = median([ours / raw for ours, raw in zip(rates.ours, rates.raw, strict=True)])
    figures.add(
        f"{name}: recorded steps",
        median(rates.ours),
        "steps/s",
        ratio=ratio,
        to="raw",
        target=at_least(ratio, 0.6, "0.6 x raw"),
    )
    bare = median(rates.bare)
    figures.add(
        f"{name}: raw bulk_write, retryWrites=False",
        bare,
        "updates/s",
        ratio=bare / median(rates.raw),
        to="raw",
        system="raw",
    )
    cpu = median(rates.cpu)
    figures.add(
        f"{name}: client CPU of a 5-step run",
        cpu,
        "ms",
        target=at_most(cpu, 2.0, "2 ms") if in_flight == 50 else None,
    )

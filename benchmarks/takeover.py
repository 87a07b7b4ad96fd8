"""How soon a worker goes on with the runs of one that was killed."""

from __future__ import annotations

import asyncio
import random
import time

from benchmarks.bench import Bench, Place
from benchmarks.figures import at_most, median
from benchmarks.helper import Helper
from streamline import Streamline

_SAME_HOST = 0.5
_OTHER_HOST_GRACE = 1.0


async def measure(bench: Bench) -> None:
    """Kill workers that hold a run; measure until another worker process runs its step."""
    lease = bench.sizes.lease
    async with (
        bench.place() as place,
        Streamline(place.address, worker=False) as client,
        Helper("worker", place.address, "--lease", f"{lease}s"),
    ):
        same = [await _kill(client, place, lease) for _ in range(bench.sizes.takeovers)]
        other = [
            await _kill(client, place, lease, "--host", "elsewhere")
            for _ in range(bench.sizes.takeovers)
        ]
    add = bench.figures.add
    add("kill -9 to going on, same host, median", median(same), "s", same_as="kill -9 to going on")
    add(
        "kill -9 to going on, same host, slowest",
        max(same),
        "s",
        target=at_most(max(same), _SAME_HOST, f"{_SAME_HOST} s"),
    )
    add(f"kill -9 to going on, other host, lease {lease:g} s, median", median(other), "s")
    limit = lease + _OTHER_HOST_GRACE
    add(
        f"kill -9 to going on, other host, lease {lease:g} s, slowest",
        max(other),
        "s",
        target=at_most(max(other), limit, f"lease + {_OTHER_HOST_GRACE:g} s"),
    )


async def _kill(client: Streamline, place: Place, lease: float, *options: str) -> float:
    """Return the seconds from the death of a worker to the next run of the step it was at."""
    async with Helper("worker", place.address, "--lease", f"{lease}s", *options) as victim:
        run_id = await victim.ask("hold 1")
        # At any moment between two looks at who is alive, or two renewals.
        await asyncio.sleep(random.uniform(0, 1))
        killed = time.monotonic()
        await victim.kill()
        went_on: float = await client.handle(run_id).result()
    return went_on - killed

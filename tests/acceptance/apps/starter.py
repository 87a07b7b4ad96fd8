"""A process that starts one run, with a worker of its own, and prints what came of it.

python -m tests.acceptance.apps.starter URI DATABASE RUN_ID N
"""

from __future__ import annotations

import asyncio
import sys

from streamline import Streamline
from tests.acceptance.apps import flows
from tests.acceptance.apps.worker import address_of


async def _main() -> None:
    uri, database, run_id, n = sys.argv[1:]
    flows.effects.connect(uri, database)
    async with Streamline(address_of(uri, database), registry=flows.registry):
        print("standing by", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        handles = await asyncio.gather(
            *(flows.plodding.options(id=run_id).start(int(n), 0.3) for _ in range(5))
        )
        results = await asyncio.gather(*(handle.result(timeout=20) for handle in handles))
    print(*results, flush=True)


if __name__ == "__main__":
    asyncio.run(_main())

"""A worker process under chaos; it ends with its stdin.

python -m tests.chaos.worker ADDRESS DIRECTORY [--lease 2.5] [--jumps SEED] [--mutate NAME]
    [--way PORT=OTHER ...]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import threading
import time
from pathlib import Path

from streamline import ServerUnavailable, Streamline
from tests.chaos import flows, mutations
from tests.chaos.haste import hasten
from tests.chaos.ways import detour

SERVER_TIMEOUT = 3.0
INLINE_LIMIT = 2048
"""So small that some payloads of the workflows here are kept outside of their runs' documents."""


def die_with_stdin() -> None:
    """End this process as soon as whoever holds the other end of its stdin does."""

    def watch() -> None:
        while os.read(0, 1024):  # not sys.stdin: its lock would be held as the process ends
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def log_to_stderr() -> None:
    """Log what the engine says."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("pymongo").setLevel(logging.WARNING)


async def jump(seed: str) -> None:
    """Make the wall clock of this process jump by up to an hour, again and again."""
    rng, offset, real = random.Random(seed), 0.0, time.time
    time.time = lambda: real() + offset
    while True:
        offset = rng.uniform(-3600, 3600)
        await asyncio.sleep(rng.uniform(0.3, 2.0))


async def start(engine: Streamline) -> None:
    """Start an engine, however long the server is away."""
    while True:
        try:
            await engine.start()
            return
        except ServerUnavailable as error:
            logging.getLogger("chaos").info("can't start yet: %s", error)
            await asyncio.sleep(0.2)


async def main() -> None:
    """Work for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--lease", type=float, default=2.5)
    parser.add_argument("--jumps")
    parser.add_argument("--mutate", default=os.environ.get("CHAOS_MUTATE", ""))
    parser.add_argument("--way", action="append", default=[])
    given = parser.parse_args()
    detour(given.way)
    flows.place.settle(given.directory)
    jumping = asyncio.create_task(jump(given.jumps)) if given.jumps else None
    mutations.apply(given.mutate)
    hasten()
    engine = Streamline(
        given.address,
        lease=given.lease,
        server_timeout=SERVER_TIMEOUT,
        registry=flows.registry,
        inline_limit=INLINE_LIMIT,
    )
    await start(engine)
    logging.getLogger("chaos").info("ready")
    await asyncio.Event().wait()
    del jumping


if __name__ == "__main__":
    die_with_stdin()
    log_to_stderr()
    asyncio.run(main())

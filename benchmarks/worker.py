"""A worker process of the benchmarks: python -m benchmarks.worker URI [--host NAME] [--lease 3s].

It says `ready`, obeys lines (`hold N`, `cpu`), and stops at the end of its input.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys

from benchmarks.bench import warm_up
from benchmarks.peers.marks import holding
from benchmarks.processor import cpu_seconds
from benchmarks.workflows import survivor
from streamline import Streamline

_POLL = 0.005


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--lease", default="60s")
    parser.add_argument("--host", help="what this host is called, to look like another one")
    return parser.parse_args()


async def _main() -> None:
    arguments = _arguments()
    if arguments.host:
        # A worker's id names its host: by this name others see that they can't look at its pid.
        socket.gethostname = lambda: arguments.host
    async with Streamline(arguments.address, lease=arguments.lease) as engine:
        await warm_up(engine)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(await _obey(engine, line.split()), flush=True)


async def _obey(engine: Streamline, words: list[str]) -> str:
    if words[0] == "cpu":
        return str(cpu_seconds())
    assert words[0] == "hold"
    runs = [(await engine.start_run(survivor, os.getpid(), 0)).id for _ in range(int(words[1]))]
    while not holding.issuperset(runs):
        await asyncio.sleep(_POLL)
    return " ".join(runs)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(_main())

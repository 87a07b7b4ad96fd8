"""A worker process: stands by until told to go on, works until SIGTERM or the end of its stdin.

    python -m tests.acceptance.apps.worker URI DATABASE [--lease 3s] [--concurrency 100] ...

It prints `standing by`, then `ready`, then `stopped`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading

from streamline import Streamline
from tests.acceptance.apps import flows


def _obey_stdin(loop: asyncio.AbstractEventLoop, go: asyncio.Event) -> None:
    """Go on at the first line; die when whoever holds the other end does."""
    if sys.stdin.readline():
        loop.call_soon_threadsafe(go.set)
        sys.stdin.read()
    os._exit(1)


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("database")
    parser.add_argument("--lease", default="3s")
    parser.add_argument("--drain", default="10s")
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--foreign", action="store_true", help="know the foreign workflows only")
    arguments = parser.parse_args()
    loop = asyncio.get_running_loop()
    go, end = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    threading.Thread(target=_obey_stdin, args=(loop, go), daemon=True).start()
    flows.effects.connect(arguments.uri, arguments.database)
    engine = Streamline(
        address_of(arguments.uri, arguments.database),
        lease=arguments.lease,
        concurrency=arguments.concurrency,
        registry=flows.foreign if arguments.foreign else flows.registry,
    )
    print("standing by", flush=True)
    await go.wait()
    await engine.start()
    print("ready", flush=True)
    await end.wait()
    await engine.stop(arguments.drain)
    print("stopped", flush=True)


def address_of(uri: str, database: str) -> str:
    """Put a database into the path of a URI that has none."""
    head, _, options = uri.partition("?")
    return f"{head.rstrip('/')}/{database}?{options}"


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("pymongo").setLevel(logging.WARNING)
    asyncio.run(_main())

"""A real mongod for tests: the one named by the environment, else an embedded one."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from streamline.store.embedded import EmbeddedMongod


@contextmanager
def mongod_uri() -> Iterator[str]:
    """Give the URI of a mongod: `STREAMLINE_MONGODB_URI`, else of one started for the occasion.

    Raises:
        ServerUnavailable: No mongod can be found to embed.
    """
    given = os.environ.get("STREAMLINE_MONGODB_URI")
    if given:
        yield given
        return
    directory = tempfile.mkdtemp(prefix="streamline-test-")
    mongod = EmbeddedMongod(directory)
    try:
        yield asyncio.run(mongod.start())
        asyncio.run(mongod.stop())
    finally:
        shutil.rmtree(directory, ignore_errors=True)

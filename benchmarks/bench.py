"""`Bench`: what every part of the benchmarks is given: a server, the sizes, a place for figures."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from benchmarks.figures import Figures
from benchmarks.raw import RawDriver
from benchmarks.sizes import Sizes
from streamline import Streamline
from streamline.store.mongo import MongoStore

CONCURRENCY = 1000


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A database of one's own, empty at first and dropped in the end."""

    address: str
    """The URI, with the database in its path."""
    database: AsyncDatabase[dict[str, Any]]


class Bench:
    """One run of the benchmarks.

    Args:
        uri: The server, without a database.
        sizes: How much is measured.
        figures: Where the figures go.
        raw: The driver to compare with.
    """

    def __init__(self, uri: str, sizes: Sizes, figures: Figures, raw: RawDriver) -> None:
        self.sizes = sizes
        self.figures = figures
        self.raw = raw
        self._uri = uri

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """Give a database of its own."""
        name = f"bench_{uuid.uuid4().hex[:8]}"
        head, _, options = self._uri.partition("?")
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(self._uri, tz_aware=True)
        address = f"{head.rstrip('/')}/{name}?{options}"
        try:
            yield Place(address=address, database=client.get_database(name))
        finally:
            await client.drop_database(name)
            await client.close()

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[Streamline]:
        """Give a warm engine with a worker, on a database of its own."""
        async with (
            self.place() as place,
            Streamline(place.address, concurrency=CONCURRENCY) as engine,
        ):
            await warm_up(engine)
            yield engine


def database_of(engine: Streamline) -> AsyncDatabase[dict[str, Any]]:
    """Return the database of an engine."""
    store = engine.store
    assert isinstance(store, MongoStore)
    return store.database


async def warm_up(engine: Streamline) -> None:
    """Let connections be made and code be compiled before anything counts."""
    from benchmarks.workflows import steps

    for _ in range(20):
        await (await engine.start_run(steps, 10)).result()

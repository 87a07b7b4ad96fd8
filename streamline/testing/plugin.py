"""The pytest plugin: fixtures for testing workflows. pytest finds it by its entry point.

The fixtures are asynchronous; they need pytest-asyncio (or anyio's plugin) in the test environment.
pytest loads this module, and so the package, in every session of an environment that has
streamline; suites that don't want it say `-p no:streamline`.
"""

from __future__ import annotations

import importlib
import importlib.util
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import pytest
from pymongo import AsyncMongoClient

from streamline.engine import Streamline
from streamline.testing.environment import Environment
from streamline.testing.servers import mongod_uri

Fixture = TypeVar("Fixture", bound=Callable[..., Any])


def _async_fixture(function: Fixture) -> Fixture:
    decorate: Any = pytest.fixture  # which anyio's plugin runs if it is asynchronous
    if importlib.util.find_spec("pytest_asyncio") is not None:
        decorate = importlib.import_module("pytest_asyncio").fixture
    decorated: Fixture = decorate(function)
    return decorated


@_async_fixture
async def streamline() -> AsyncIterator[Environment]:
    """Give an engine in memory, with skipped time, mocks and crashes: see `Environment`."""
    async with Environment() as environment:
        yield environment


@pytest.fixture(scope="session")
def streamline_mongod() -> Iterator[str]:
    """Give the URI of a real mongod, started once for the whole session."""
    with mongod_uri() as uri:
        yield uri


@_async_fixture
async def streamline_mongo(streamline_mongod: str) -> AsyncIterator[Streamline]:
    """Give an engine on a real mongod, with a database of its own that is dropped in the end."""
    async with AsyncMongoClient[dict[str, Any]](streamline_mongod, tz_aware=True) as client:
        database = client[f"test_{uuid.uuid4().hex[:12]}"]
        try:
            async with Streamline(database) as engine:
                yield engine
        finally:
            await client.drop_database(database)

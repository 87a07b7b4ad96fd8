"""The pytest plugin: fixtures for testing workflows. pytest finds it by its entry point.

pytest loads this module in every session of an environment that has streamline, so it imports
nothing of the package before a fixture is used, and it lies beside the package: within, its import
would bring all of the package along. Suites that don't want the fixtures say `-p no:streamline`.
The fixtures are asynchronous; they need pytest-asyncio (or anyio's plugin) in the test environment.
"""

from __future__ import annotations

import importlib
import importlib.util
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from streamline import Streamline
    from streamline.testing import Environment

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
    from streamline.testing import Environment

    async with Environment() as environment:
        yield environment


@pytest.fixture(scope="session")
def streamline_mongod() -> Iterator[str]:
    """Give the URI of a real mongod, started once for the whole session."""
    from streamline.testing.servers import mongod_uri

    with mongod_uri() as uri:
        yield uri


@_async_fixture
async def streamline_mongo(streamline_mongod: str) -> AsyncIterator[Streamline]:
    """Give an engine on a real mongod, with a database of its own that is dropped in the end."""
    from pymongo import AsyncMongoClient

    from streamline import Streamline

    async with AsyncMongoClient[dict[str, Any]](streamline_mongod, tz_aware=True) as client:
        database = client[f"test_{uuid.uuid4().hex[:12]}"]
        try:
            async with Streamline(database) as engine:
                yield engine
        finally:
            await client.drop_database(database)

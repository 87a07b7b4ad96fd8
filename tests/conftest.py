"""Fixtures that several kinds of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import Mongod


@pytest.fixture(scope="session")
def mongod_replica() -> Iterator[str]:
    """The URI of a replica set of one; started once per session (and per xdist worker)."""
    with Mongod() as mongod:
        yield mongod.uri


@pytest.fixture(scope="session")
def mongod_standalone() -> Iterator[str]:
    """The URI of a server without a replica set: no transactions, no change streams."""
    with Mongod(None) as mongod:
        yield mongod.uri


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name parameters alike in every process: the reprs of some hold addresses."""
    if val is None or isinstance(val, (str, int, float, bool, type)):
        return None
    return type(val).__name__

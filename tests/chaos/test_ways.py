"""The driver goes the ways that the harness leads it."""

from __future__ import annotations

import asyncio
import socket

import pytest
from pymongo import AsyncMongoClient, MongoClient

from tests.chaos.proxy import Proxy
from tests.chaos.ways import detour
from tests.servers import HOST, free_port


@pytest.mark.mongo
async def test_both_clients_go_through_the_proxy(
    mongod_replica: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", socket.getaddrinfo)  # put back in the end
    port = int(mongod_replica.split(":")[2].split("/")[0])
    nowhere = free_port()
    uri = f"mongodb://{HOST}:{nowhere}/?directConnection=true&serverSelectionTimeoutMS=5000"
    async with Proxy(HOST, port) as proxy:
        detour([f"{nowhere}={proxy.port}"])
        async with AsyncMongoClient[dict[str, object]](uri) as client:
            assert (await client.admin.command("ping"))["ok"]

        def ping() -> object:
            with MongoClient[dict[str, object]](uri) as twin:
                return twin.admin.command("ping")["ok"]

        assert await asyncio.to_thread(ping)

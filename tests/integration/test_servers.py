"""The test servers themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient, timeout
from pymongo.errors import PyMongoError

from tests.servers import Mongod, ReplicaSet

pytestmark = pytest.mark.mongo


def _client(uri: str, **options: Any) -> MongoClient[dict[str, Any]]:
    return MongoClient(uri, serverSelectionTimeoutMS=10_000, **options)


def test_a_killed_server_restarts_on_its_port_and_data() -> None:
    with Mongod() as mongod:
        uri, pid = mongod.uri, mongod.pid
        with _client(uri) as client:
            client.shop.orders.insert_one({"_id": 1})
        mongod.kill()
        assert not Path(f"/proc/{pid}").exists()
        mongod.restart()
        assert mongod.uri == uri
        with _client(uri) as client:
            assert client.shop.orders.count_documents({}) == 1


def test_a_frozen_server_answers_after_the_thaw() -> None:
    with Mongod(None) as mongod:
        mongod.freeze()
        with _client(mongod.uri, socketTimeoutMS=200, connectTimeoutMS=200) as impatient:
            with pytest.raises(PyMongoError), timeout(0.5):
                impatient.admin.command("ping")
            mongod.thaw()
            assert impatient.admin.command("ping")["ok"] == 1


@pytest.mark.kill
def test_a_replica_set_replaces_a_killed_primary() -> None:
    with ReplicaSet(3) as replica_set:
        first = replica_set.primary()
        first.kill()
        assert replica_set.primary() is not first


def test_session_servers_differ_in_being_a_replica_set(
    mongod_replica: str, mongod_standalone: str
) -> None:
    with _client(mongod_replica) as replica, _client(mongod_standalone) as standalone:
        assert replica.admin.command("hello").get("setName") == "rs"
        assert "setName" not in standalone.admin.command("hello")


def test_stopping_leaves_neither_process_nor_files() -> None:
    mongod = Mongod(None).start()
    pid = mongod.pid
    directory = Path(os.readlink(f"/proc/{pid}/fd/1")).parent
    mongod.stop()
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()

"""Making a mongod the writable primary of a replica set of one: transactions need a set."""

from __future__ import annotations

import math
import socket
from typing import Any

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure
from pymongo.write_concern import WriteConcern

from streamline.store.embedded.deadline import Deadline

SET_NAME = "streamline"
HOST = "127.0.0.1"
_ALREADY_INITIALIZED = 23


class ReplicaSet:
    """The replica set whose only member listens on `port`; used as a context manager."""

    def __init__(self, port: int, deadline: Deadline) -> None:
        self._address = f"{HOST}:{port}"
        self._deadline = deadline
        # Direct: discovery would go to the address in the set's configuration, maybe an old one.
        timeout_ms = max(1, math.ceil(deadline.remaining_s * 1000))
        self._client: MongoClient[dict[str, Any]] = MongoClient(
            HOST,
            port,
            directConnection=True,
            serverSelectionTimeoutMS=timeout_ms,
            socketTimeoutMS=timeout_ms,
        )

    def __enter__(self) -> ReplicaSet:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def database_path(self) -> str:
        """Return the directory that the server says it runs on."""
        options = self._client.admin.command("getCmdLineOpts")
        return str(options["parsed"].get("storage", {}).get("dbPath", ""))

    def correct_address(self) -> bool:
        """Correct the set's configuration if it names another port; then mongod must restart.

        Not by `replSetReconfig`: as long as mongod asks the old address whether that is itself,
        which a silent stranger on that port draws out to half a minute, it takes no such command.
        Its database `local` can be written in every state.

        Returns:
            Whether it was corrected.
        """
        if self._is_primary():
            return False
        configurations = self._client.local.get_collection(
            "system.replset", write_concern=WriteConcern(w=1, j=True)
        )
        found = configurations.find_one({"_id": SET_NAME})
        if found is None or found["members"][0]["host"] == self._address:
            return False
        configurations.update_one(
            {"_id": SET_NAME}, {"$set": {"members.0.host": self._address}, "$inc": {"version": 1}}
        )
        return True

    def ensure_primary(self) -> None:
        """Initiate the set, if that was never done; return when the server takes writes.

        Raises:
            ServerUnavailable: It didn't by the deadline.
            ConnectionFailure: The server went away.
        """
        while not (hello := self._hello()).get("isWritablePrimary"):
            if "setName" not in hello:
                self._initiate()
            self._deadline.pause(f"mongod at {self._address} didn't become primary in time.")

    def _is_primary(self) -> bool:
        return bool(self._hello().get("isWritablePrimary"))

    def _hello(self) -> dict[str, Any]:
        return self._client.admin.command("hello")

    def _initiate(self) -> None:
        config = {"_id": SET_NAME, "members": [{"_id": 0, "host": self._address}]}
        try:
            self._client.admin.command("replSetInitiate", config)
        except OperationFailure as error:
            # A set that exists, but isn't loaded yet, looks like none.
            if error.code != _ALREADY_INITIALIZED:
                raise


def answers(port: int, database_path: str, deadline: Deadline) -> bool:
    """Tell whether the mongod of a directory listens on a port."""
    try:
        # A refused connection is known at once here; pymongo would try again for the whole time.
        socket.create_connection((HOST, port), timeout=deadline.remaining_s or 0.001).close()
        with ReplicaSet(port, deadline) as replica_set:
            return replica_set.database_path() == database_path
    except (OSError, ConnectionFailure, OperationFailure):
        return False

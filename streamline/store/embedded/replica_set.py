"""Making a mongod the writable primary of a replica set of one: transactions need a set."""

from __future__ import annotations

import math
import socket
from typing import Any

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure

from streamline.store.embedded.deadline import Deadline

SET_NAME = "streamline"
HOST = "127.0.0.1"
_NOT_YET_INITIALIZED = 94
_IN_PROGRESS = (23, 109)  # AlreadyInitialized, ConfigurationInProgress: look again.


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

    def ensure_primary(self) -> None:
        """Initiate the set, or correct its address, as needed; return when it takes writes.

        Raises:
            ServerUnavailable: It didn't by the deadline.
            ConnectionFailure: The server went away.
        """
        while not self._is_primary():
            # Looked at anew each time: just after a start the configuration isn't loaded yet.
            host = self._configured_host()
            if host is None:
                self._command({"replSetInitiate": self._configuration()})
            elif host != self._address:
                self._move()
            self._deadline.pause(f"mongod at {self._address} didn't become primary in time.")

    def _is_primary(self) -> bool:
        return bool(self._client.admin.command("hello").get("isWritablePrimary"))

    def _configured_host(self) -> str | None:
        try:
            config = self._client.admin.command("replSetGetConfig")["config"]
        except OperationFailure as error:
            if error.code != _NOT_YET_INITIALIZED:
                raise
            return None
        return str(config["members"][0]["host"])

    def _configuration(self) -> dict[str, Any]:
        return {"_id": SET_NAME, "members": [{"_id": 0, "host": self._address}]}

    def _move(self) -> None:
        # A member that doesn't find its own address in the configuration is REMOVED; only a forced
        # reconfiguration works there, as there is no primary to accept an ordinary one.
        config = self._client.admin.command("replSetGetConfig")["config"]
        config["members"] = self._configuration()["members"]
        config["version"] += 1
        self._command({"replSetReconfig": config, "force": True})

    def _command(self, command: dict[str, Any]) -> None:
        try:
            self._client.admin.command(command)
        except OperationFailure as error:
            if error.code not in _IN_PROGRESS:
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

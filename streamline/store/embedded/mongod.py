"""The embedded MongoDB: one mongod for a directory, shared by all that name the directory.

Each user holds a shared lock on a file; whoever leaves and then gets that lock alone was the last
one, and stops the server. A start lock serialises starts and stops. Both are the kernel's to
release, so that killed processes leave nothing behind but, at worst, a mongod that the next start
adopts.
"""

from __future__ import annotations

import asyncio
import atexit
import os
from pathlib import Path
from types import TracebackType

from pymongo.errors import ConnectionFailure, OperationFailure

from streamline.durations import Duration, to_seconds
from streamline.errors import ServerUnavailable
from streamline.store.embedded.deadline import Deadline
from streamline.store.embedded.directory import DataDirectory
from streamline.store.embedded.locks import FileLock
from streamline.store.embedded.process import launch, terminate
from streamline.store.embedded.replica_set import HOST, SET_NAME, ReplicaSet, answers

_STOP_LOCK_S = 30.0
_ANSWER_S = 1.0
_RESTART_PATIENCE_S = 2.0


class EmbeddedMongod:
    """One user's share of the mongod of a directory.

    The server listens on 127.0.0.1 only and asks for no password: who may log in to the host may
    use it. It is a replica set of one, so transactions and change streams work.

    Args:
        path: Where its data and log are; made if missing.
        cache_gb: Memory for its cache, from 0.25; a server that runs already keeps its own.
        startup_timeout: How long `start` may take, waiting for other processes included.
    """

    def __init__(
        self,
        path: Path | str = ".streamline",
        *,
        cache_gb: float = 0.25,
        startup_timeout: Duration = "30s",
    ) -> None:
        self._directory = DataDirectory(path)
        self._cache_gb = cache_gb
        self._startup_s = to_seconds(startup_timeout)
        self._users: FileLock | None = None
        self._uri = ""
        self._pid = 0

    async def start(self) -> str:
        """Start the server, or join the one that runs, and return its URI.

        Raises:
            ServerUnavailable: It can't be started; the message has its own words and what to do.
        """
        if self._users is not None:
            return self._uri
        deadline = Deadline(self._startup_s)
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, deadline))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread can't be cancelled: let it give up, then undo what it may have done.
            deadline.expire()
            await asyncio.wait({starting})
            if not starting.cancelled() and starting.exception() is None:
                await self.stop()
            raise

    async def stop(self) -> None:
        """Leave the server; the last one to leave stops it. A second call does nothing.

        Raises:
            ServerUnavailable: The server could not be stopped.
        """
        await asyncio.to_thread(self._stop)

    async def __aenter__(self) -> str:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _start(self, deadline: Deadline) -> str:
        try:
            self._directory.create()
            gate = FileLock(self._directory.start_lock)
        except OSError as error:
            raise ServerUnavailable(
                f"The directory of the embedded MongoDB can't be used: {error}. "
                "Name another one, or set STREAMLINE_MONGODB_URI to use a server."
            ) from error
        with gate:
            gate.exclusive(deadline)
            users = FileLock(self._directory.users_lock)
            try:
                users.try_shared()  # Nobody takes it alone without the start lock, held here.
                port = self._serve(deadline)
            except BaseException:
                self._leave(users)
                raise
        self._users, self._pid = users, os.getpid()
        # For programs that never call stop: an orphan would be harmless, but isn't nice.
        atexit.register(self._stop)
        self._uri = f"mongodb://{HOST}:{port}/?directConnection=true&replicaSet={SET_NAME}"
        return self._uri

    def _serve(self, deadline: Deadline) -> int:
        """Return the port of a server that takes writes: the one that runs, or a new one."""
        while True:
            try:
                port = self._adopt(deadline)
                if port is None:
                    port = launch(self._directory, self._cache_gb, deadline)
                with ReplicaSet(port, deadline) as replica_set:
                    if not replica_set.correct_address():
                        replica_set.ensure_primary()
                        return port
                # Its journal has the correction; it may hang as it asks the old address.
                terminate(self._directory, patience_s=_RESTART_PATIENCE_S)
            except (ConnectionFailure, OperationFailure) as error:
                # It ended, or was about to, between two looks at it.
                deadline.pause(self._said(f"mongod failed as it started ({error})."))

    def _adopt(self, deadline: Deadline) -> int | None:
        """Return the port of the mongod that runs on the directory; None if none does."""
        while self._directory.in_use():
            port = self._directory.port
            bound = Deadline(min(_ANSWER_S, deadline.remaining_s))
            if port is not None and answers(port, str(self._directory.data), bound):
                return port
            deadline.pause(
                self._said(
                    f"A mongod (pid {self._directory.mongod_pid() or 'of another host'}) runs on "
                    f"{self._directory.data}, but gives no answer at port {port}. "
                    "Stop that process, and start again."
                )
            )
        return None

    def _said(self, message: str) -> str:
        return f"{message}\nThe last lines of {self._directory.log}:\n{self._directory.log_tail()}"

    def _stop(self) -> None:
        users, self._users = self._users, None
        if users is None or self._pid != os.getpid():
            return  # A forked child: the parent is the user.
        atexit.unregister(self._stop)
        try:
            gate = FileLock(self._directory.start_lock)
        except OSError:
            # Somebody removed the directory; mongod aborts by itself when it misses its files.
            users.release()
            return
        with gate:
            try:
                gate.exclusive(Deadline(_STOP_LOCK_S))
            except ServerUnavailable:
                users.release()
                raise
            self._leave(users)

    def _leave(self, users: FileLock) -> None:
        try:
            if users.try_exclusive():
                terminate(self._directory)
        finally:
            users.release()

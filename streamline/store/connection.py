"""The way to the server: clients, collections, the server's time, and trying again.

Owns every network error: what leaves here is a result, `ServerUnavailable`, or a fault that no
repetition cures. Knows nothing of runs.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote_plus

from pymongo import AsyncMongoClient, MongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.database import Database
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WaitQueueTimeoutError,
    WriteConcernError,
)
from pymongo.read_concern import ReadConcern
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from streamline.clock import SystemClock
from streamline.codec import CODEC_OPTIONS
from streamline.errors import ServerUnavailable
from streamline.store.patience import Patience

T = TypeVar("T")
Document = dict[str, Any]

DEFAULT_DATABASE = "streamline"
# Journalled too: a majority that all lost power at once must not forget.
DURABLE = WriteConcern(w="majority", j=True)
_CLOCK_SAMPLES = 3
_CLOCK_ROUND_TRIP = 0.05
UNDER_WAY = 64
"""So many calls are under way at once; more only wait for each other in the driver's pool."""
_CROWD_TRIES = 5
_MIN_WIRE_VERSION = 13  # MongoDB 5.0: dots and dollars in keys, $expr bounds on indexes
_REFUSED = frozenset({18, 8000})  # authentication failed, and Atlas's own code for it
# From the retryable-writes specification, and what a failover leaves behind in single statements.
_TRANSIENT = frozenset(
    {6, 7, 43, 50, 63, 64, 79, 89, 91, 112, 133, 134, 189, 202, 234, 262, 314, 317, 358, 384}
    | {9001, 10058, 10107, 11600, 11602, 13388, 13435, 13436, 50915}
)
_PASSWORD = re.compile(r"^(?P<user>[^:/]*://[^:@/]*|[^:@/]*):(?!//)(?P<secret>.*)@")
_OPTION = re.compile(
    r"(?P<name>[?&;][^=&;]*(?:password|passphrase|mechanismproperties)[^=&;]*)=(?P<secret>[^&;]*)",
    re.IGNORECASE,
)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    if isinstance(error, WriteConcernError | ExecutionTimeout | WaitQueueTimeoutError):
        return True
    if isinstance(error, OperationFailure):
        return is_transient_code(error.code) or error.has_error_label("RetryableWriteError")
    return isinstance(error, ConnectionFailure)


def is_transient_code(code: int | None) -> bool:
    """Whether a server's error of this code may not come again."""
    return code in _TRANSIENT


class Connection:
    """One process's way to one database.

    Args:
        address: A MongoDB URI whose path names the database, or a database of the user's own
            client, which is then used but never closed.
        timeout: How long the server may be silent before `ServerUnavailable`.
    """

    def __init__(self, address: str | AsyncDatabase[Any], *, timeout: timedelta) -> None:
        self.timeout: float = timeout.total_seconds()
        self.clock: SystemClock = SystemClock()
        self._patience = Patience(self.timeout)
        self._uri = address if isinstance(address, str) else None
        self._given = None if isinstance(address, str) else address
        self._database: AsyncDatabase[Document] | None = None
        self._twin: MongoClient[Document] | None = None
        self._twin_lock = threading.Lock()
        self._clock_set_at = 0.0
        self._answered_at = 0.0
        self._failure: ServerUnavailable | None = None
        self._failed_at = 0.0
        self._under_way = asyncio.Semaphore(UNDER_WAY)

    @property
    def database(self) -> AsyncDatabase[Document]:
        """The database, reading from the primary and writing durably whatever the URI says."""
        if self._database is None:
            raise RuntimeError("The store isn't open; call open() first.")
        return self._database

    def collection(self, name: str) -> AsyncCollection[Document]:
        """Return a collection of the database."""
        return self.database[name]

    async def open(self) -> None:
        """Connect and set the clock.

        Raises:
            ServerUnavailable: Nothing answered in time, the address makes no sense, the server
                refused, or it is too old.
        """
        if self._database is not None:
            return
        self._database = self._connect()
        try:
            hello = await self.persist(self._greet)
        except BaseException:
            await self.close()
            raise
        if hello.get("maxWireVersion", 0) < _MIN_WIRE_VERSION:
            await self.close()
            raise ServerUnavailable("streamline needs MongoDB 5.0 or newer; this server is older.")

    async def close(self) -> None:
        """Close what this object opened."""
        database, self._database = self._database, None
        if database is not None and self._given is None:
            await database.client.close()
        with self._twin_lock:
            twin, self._twin = self._twin, None
        if twin is not None:
            twin.close()

    async def refresh_clock(self, *, every: float) -> None:
        """Set the clock by the server again, if the last time is more than `every` seconds ago."""
        if self.clock.steady() - self._clock_set_at > every:
            await self.persist(self._greet)

    async def persist(self, operation: Callable[[bool], Awaitable[T]]) -> T:
        """Do a repeatable operation, again and again until it works or the server is silent.

        Of a crowd of calls only so many are under way; the others wait for their turn, which is not
        the server's silence. One under way that took too long while others were answered goes on.

        Args:
            operation: Takes whether an earlier try may have had its effect without our knowing.

        Raises:
            ServerUnavailable: The last transient error is its cause.
        """
        came = time.monotonic()
        async with self._under_way:
            if self._failure is not None and self._failed_at > max(came, self._answered_at):
                # Found silent meanwhile: not each of a crowd after a timeout of its own.
                raise ServerUnavailable(str(self._failure)) from self._failure
            tries = 0
            while True:
                began = time.monotonic()
                try:
                    result = await self._persist(operation, again=tries > 0)
                except ServerUnavailable as error:
                    tries += 1
                    if not self._goes_on(error, began, tries):
                        raise
                else:
                    self._answered_at = time.monotonic()
                    return result

    def _goes_on(self, error: ServerUnavailable, began: float, tries: int) -> bool:
        """Whether a call that failed was only one of too many, and is to be tried again."""
        now = time.monotonic()
        if now - self._answered_at > self.timeout / 2:
            self._failure, self._failed_at = error, now
            return False
        refused = now - began < self.timeout * 0.9
        return not refused and tries <= _CROWD_TRIES

    async def _persist(self, operation: Callable[[bool], Awaitable[T]], *, again: bool) -> T:
        last: PyMongoError | None = None
        call = self._patience.call()
        try:
            with call:
                try:
                    return await operation(again)
                except PyMongoError as error:
                    if not is_transient(error):
                        self._refuse(error)
                    last = error
                # The common case above doesn't pay for tenacity's bookkeeping.
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception(is_transient),
                    wait=wait_random_exponential(multiplier=0.05, max=1.0),
                ):
                    with attempt:
                        try:
                            return await operation(True)
                        except PyMongoError as error:
                            last = error
                            if not is_transient(error):
                                self._refuse(error)
                            raise
        except TimeoutError as error:
            self._unavailable(last or error)
        except RuntimeError as error:
            # PyMongo (4.20), cancelled while it waits for a primary, raises this instead.
            if "Lock is not acquired" not in str(error):
                raise
            if call.expired:
                self._unavailable(last or error)
            raise asyncio.CancelledError from error
        raise AssertionError("unreachable")

    def twin(self) -> Database[Document]:
        """Return the same database through a blocking client, made when first asked for.

        An async client belongs to its event loop, and renewals must go on while that is blocked.
        For a client of the user's own this relies on `_init_kwargs`, the arguments it was made
        with, which PyMongo keeps to duplicate a client: seeds, TLS, credentials and all.
        """
        with self._twin_lock:
            if self._twin is None:
                self._twin = MongoClient(**self._twin_arguments())
            name = self.database.name
            return self._twin.get_database(
                name, CODEC_OPTIONS, ReadPreference.PRIMARY, DURABLE, ReadConcern("local")
            )

    # -- connecting -------------------------------------------------------------------------------

    def _connect(self) -> AsyncDatabase[Document]:
        if self._given is not None:
            return self._durable(self._given)
        try:
            client: AsyncMongoClient[Document] = AsyncMongoClient(**self._own_arguments())
            return self._durable(client.get_default_database(DEFAULT_DATABASE))
        except (PyMongoError, ValueError, TypeError, OSError) as error:
            # Not chained: PyMongo's message may quote a part of a password it took for a host.
            raise ServerUnavailable(
                f"The address {self._shown()!r} is not a valid MongoDB URI "
                f"({type(error).__name__}). Escape special characters of user name and password "
                "with urllib.parse.quote_plus."
            ) from None

    def _own_arguments(self) -> Document:
        # Less than the timeout, so that PyMongo's own reason is there to be told.
        milliseconds = max(1, int(self.timeout * 800))
        return {
            "host": self._uri,
            "serverSelectionTimeoutMS": milliseconds,
            "connectTimeoutMS": milliseconds,
            "appname": "streamline",
        }

    def _twin_arguments(self) -> Document:
        if self._given is None:
            arguments = self._own_arguments()
        else:
            kept = getattr(self._given.client, "_init_kwargs", {})
            # Renewals touch no payload; and pools of the async client are not for a sync one.
            arguments = {
                key: value
                for key, value in kept.items()
                if not key.startswith("_") and key not in ("auto_encryption_opts", "connect")
            }
        return arguments | {"maxPoolSize": 1, "minPoolSize": 0, "connect": False}

    @staticmethod
    def _durable(database: AsyncDatabase[Any]) -> AsyncDatabase[Document]:
        return database.with_options(
            codec_options=CODEC_OPTIONS,
            read_preference=ReadPreference.PRIMARY,
            write_concern=DURABLE,
            read_concern=ReadConcern("local"),
        )

    async def _greet(self, again: bool) -> Document:
        # The first answer may have waited for a connection to be made; the second tells the time.
        if not self._clock_set_at:
            await self.database.command("hello")
        best: tuple[float, float, Document] | None = None
        for _ in range(_CLOCK_SAMPLES):
            sent = self.clock.steady()
            hello: Document = await self.database.command("hello", codec_options=CODEC_OPTIONS)
            received = self.clock.steady()
            if best is None or received - sent < best[1] - best[0]:
                best = (sent, received, hello)
        assert best is not None
        sent, received, hello = best
        # A busy process hears the answer late: such a sample is worse than the clock we have.
        if not self._clock_set_at or received - sent < _CLOCK_ROUND_TRIP:
            self.clock.set_by(hello["localTime"], sent=sent, received=received)
            self._clock_set_at = received
        return hello

    # -- failing ----------------------------------------------------------------------------------

    def _shown(self) -> str:
        if self._uri is None:
            return "the given client"
        return _OPTION.sub(r"\g<name>=***", _PASSWORD.sub(r"\g<user>:***@", self._uri))

    def _clean(self, text: str) -> str:
        uri = self._uri or ""
        for found in (*_PASSWORD.finditer(uri), *_OPTION.finditer(uri)):
            for form in (found["secret"], unquote_plus(found["secret"])):
                # A shorter one can't be told from ordinary text; to mask it would point it out.
                if len(form) > 3:
                    text = text.replace(form, "***")
        return text

    def _refuse(self, error: PyMongoError) -> NoReturn:
        if isinstance(error, OperationFailure) and error.code in _REFUSED:
            self._unavailable(error)
        if isinstance(error, ConfigurationError):
            self._unavailable(error)
        raise error

    def _unavailable(self, error: BaseException) -> NoReturn:
        reason = str(error) or type(error).__name__
        what = "refused" if isinstance(error, OperationFailure) else "did not answer"
        clean = self._clean(reason)
        raise ServerUnavailable(
            f"MongoDB at {self._shown()!r} {what} within {self.timeout:g} s: {clean}. Check that "
            "it runs, that the address is right, and that this host may connect."
        ) from (error if clean == reason else None)

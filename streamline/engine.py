"""`Streamline`: the engine. It puts a store, a worker and the callers' control together."""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from pymongo.asynchronous.database import AsyncDatabase

from streamline import tasks
from streamline.clock import Clock, SystemClock
from streamline.codec import INLINE_LIMIT, PAYLOAD_LIMIT, Limits, PayloadCodec
from streamline.control import Control
from streamline.definitions import Registry, Workflow, default_registry
from streamline.documents import bind_documents
from streamline.durations import Duration, to_seconds, to_timedelta
from streamline.errors import InvalidState
from streamline.events import EventBus
from streamline.handles import (
    Engine,
    RunHandle,
    StartOptions,
    set_current_engine,
    unset_current_engine,
)
from streamline.health import Health
from streamline.launcher import Launcher
from streamline.model import Input, Parent, Run
from streamline.store import RunStore
from streamline.store.embedded import EmbeddedMongod
from streamline.store.memory import MemoryStore
from streamline.store.mongo import MongoStore
from streamline.store.sealed import SealedStore
from streamline.waiters import Waiters
from streamline.worker import Services, Worker

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

HOLD = timedelta(milliseconds=500)
AHEAD = timedelta(milliseconds=250)
MAX_RECOVERIES = 5
WATCH_AGAIN = 1.0


class Streamline(Engine):
    """The engine: `async with Streamline("mongodb://localhost/shop"): ...`.

    Within the context, `flow.start(...)` uses it. Several engines side by side are told apart with
    `engine.start_run(flow, ...)` or `flow.options(engine=engine)`.

    Args:
        address: A MongoDB URI, whose path names the database (`streamline` if none); or an
            `AsyncDatabase`, whose connection is used and not closed. None: the URI in the
            environment variable `STREAMLINE_MONGODB_URI`, else an embedded mongod.
        worker: Whether to drive runs here; False makes a client only.
        lease: How long a claim holds unless renewed. A worker renews every third of it; a dead
            worker's runs are taken over after it (at once, on the same host).
        concurrency: How many runs are driven at once; and how many steps that are plain functions
            run at once, in threads of the engine's own.
        registry: The definitions to drive; the global registry by default.
        data: Where an embedded mongod keeps its data.
        payload_limit: How many bytes one payload may have: arguments, a result, a message.
        inline_limit: How many bytes of one are kept in the run's document; larger ones go to the
            collection `workflow_payloads`, and are loaded when they are needed.
        cache_size: How many parked runs stay in memory, to go on without a replay.
        journal_warning: From how many entries on the journal of a run is warned of, in the log
            and by the event `workflow:long-journal`; None for never.
        server_timeout: How long MongoDB may be away before a call fails.
        store: Where runs are kept, if not on MongoDB.
        payload_codec: What encrypts payloads before they are stored, such as `AesGcm`; every engine
            on the database needs the same.
    """

    def __init__(
        self,
        address: str | AsyncDatabase[Any] | None = None,
        *,
        worker: bool = True,
        lease: Duration = "60s",
        concurrency: int = 100,
        registry: Registry | None = None,
        data: Path | str = ".streamline",
        payload_limit: int = PAYLOAD_LIMIT,
        inline_limit: int = INLINE_LIMIT,
        cache_size: int = 10_000,
        journal_warning: int | None = 10_000,
        server_timeout: Duration = "10s",
        store: RunStore | None = None,
        payload_codec: PayloadCodec | None = None,
    ) -> None:
        self.events: EventBus = EventBus()
        self.registry: Registry = registry or default_registry
        self._address = address
        self._works = worker
        self._lease = to_seconds(lease)
        self._concurrency = concurrency
        self._data = data
        self._limits = Limits(payload=payload_limit, inline=inline_limit)
        self._cache_size = cache_size
        self._journal_warning = journal_warning
        self._server_timeout = to_timedelta(server_timeout)
        self._given_store = store
        self._payload_codec = payload_codec
        self._embedded: EmbeddedMongod | None = None
        self._store: RunStore | None = None
        self._worker: Worker | None = None
        self._waiters: Waiters | None = None
        self._launcher: Launcher | None = None
        self._control: Control | None = None
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    def memory(
        cls,
        *,
        clock: Clock | None = None,
        worker: bool = True,
        concurrency: int = 100,
        registry: Registry | None = None,
    ) -> Self:
        """Return an engine that keeps everything in this process's memory, and forgets it."""
        return cls(
            store=MemoryStore(clock), worker=worker, concurrency=concurrency, registry=registry
        )

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Connect, and begin to work.

        Raises:
            ServerUnavailable: MongoDB doesn't answer, or no mongod can be found to embed.
            InvalidState: It is started already.
        """
        if self._control is not None:
            raise InvalidState("this engine is started already")
        store = await self._open_store()
        in_memory = isinstance(store, MemoryStore)
        if self._payload_codec is not None:
            store = SealedStore(store, self._payload_codec)
        self._store = store
        self._waiters = Waiters(
            store, watched=lambda: self._is_watched, told=self._is_held, polls=not in_memory
        )
        self._worker = Worker(
            self._services(store),
            lease=self._lease,
            concurrency=self._concurrency,
            cache_size=self._cache_size,
            on_ended=self._waiters.tell,
            on_lost=self._waiters.suspect,
            polls=not in_memory,
            # Skipped time stands still for a thread too; whoever moves it renews the leases.
            threaded=isinstance(store.clock, SystemClock),
        )
        self._launcher = Launcher(store, self._worker, self._limits)
        self._worker.start(claims=self._works)
        self._control = Control(
            store,
            self._worker,
            self._waiters,
            self._launcher,
            self.registry,
            self.events,
            self._limits,
        )
        self._watching = asyncio.get_running_loop().create_task(
            self._watch(store), name="streamline-watch"
        )
        set_current_engine(self)
        return self

    async def stop(self, drain: Duration = "10s") -> None:
        """Stop working: no new claims; running steps get `drain`; then claims are handed back.

        A second call does nothing.
        """
        if self._control is None:
            return
        unset_current_engine(self)
        self._control = None
        assert self._watching is not None
        assert self._worker is not None
        assert self._waiters is not None
        await tasks.end([self._watching])
        await self._worker.stop(to_seconds(drain))
        self._waiters.close()
        await self.events.drain()
        await self._close_store()

    def kill(self) -> None:
        """Drop everything at once, as if this process had died; for tests of recovery."""
        unset_current_engine(self)
        self._control = None
        if self._watching is not None:
            self._watching.cancel()
        if self._worker is not None:
            self._worker.kill()
        if self._waiters is not None:
            self._waiters.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def _services(self, store: RunStore) -> Services:
        return Services(
            store=store,
            clock=store.clock,
            events=self.events,
            registry=self.registry,
            limits=self._limits,
            hold=HOLD,
            # In memory a claim takes no time.
            ahead=timedelta() if isinstance(store, MemoryStore) else AHEAD,
            max_recoveries=MAX_RECOVERIES,
            journal_warning=self._journal_warning,
            start_child=self._start_child,
        )

    async def _start_child(
        self, flow: Workflow[..., Any], given: Input, options: StartOptions, parent: Parent
    ) -> Run:
        assert self._launcher is not None
        return await self._launcher.launch_child(flow, given, options, parent)

    async def _open_store(self) -> RunStore:
        store = self._given_store
        if store is None:
            store = MongoStore(await self._resolve_address(), timeout=self._server_timeout)
        try:
            await store.open()
            if isinstance(store, MongoStore):
                await bind_documents(store.database)
        except BaseException:
            await store.close()
            await self._stop_embedded()
            raise
        return store

    async def _resolve_address(self) -> str | AsyncDatabase[Any]:
        if self._address is not None:
            return self._address
        if uri := os.environ.get("STREAMLINE_MONGODB_URI"):
            return uri
        self._embedded = EmbeddedMongod(self._data)
        return await self._embedded.start()

    async def _close_store(self) -> None:
        if self._store is not None:
            await self._store.close()
        await self._stop_embedded()

    async def _stop_embedded(self) -> None:
        if self._embedded is not None:
            await self._embedded.stop()
            self._embedded = None

    # -- notices ----------------------------------------------------------------------------------

    @property
    def _is_watched(self) -> bool:
        return self._worker is not None and self._worker.scheduler.watched

    def _is_held(self, run_id: str) -> bool:
        return self._worker is not None and self._worker.drivers.holds(run_id)

    async def _watch(self, store: RunStore) -> None:
        """Pass on what the store notices of other processes, for as long as it can tell."""
        assert self._worker is not None
        assert self._waiters is not None
        scheduler = self._worker.scheduler
        while True:
            try:
                async for notice in store.watch(besides=self._worker.id):
                    if not notice.run_id:
                        # From here on nothing is missed; what came before is looked for once.
                        scheduler.watched = True
                        scheduler.notice_due()
                        self._waiters.suspect_all()
                        continue
                    self._worker.notice(notice)
                    if notice.status is None or notice.status.ended:
                        self._waiters.suspect(notice.run_id)
                scheduler.watched = False
                return
            except Exception as error:
                # Whatever it is: if this task ended, all would rely on notices that never come.
                scheduler.watched = False
                _log.warning("no notices from the server for now, polling instead: %s", error)
                await asyncio.sleep(WATCH_AGAIN)

    # -- use --------------------------------------------------------------------------------------

    @property
    def store(self) -> RunStore:
        """Where the runs are; for tools. Raises `InvalidState` if the engine isn't started."""
        if self._store is None or self._control is None:
            raise InvalidState("this engine is not started: it has no store yet")
        return self._store

    @property
    def control(self) -> Control:
        if self._control is None:
            raise InvalidState(
                "this engine is not started: use `async with engine`, or await engine.start()"
            )
        return self._control

    async def start_run(
        self, flow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> RunHandle[R]:
        """Start a run on this engine, as `flow.start(...)` does on the current one."""
        return await self.control.start_run(flow, args, kwargs, StartOptions())

    def handle(self, run_id: str) -> RunHandle[Any]:
        """Return the handle of any run, whether it exists or not."""
        return RunHandle(self.control, run_id)

    def health(self) -> Health:
        """Return how this engine is doing."""
        if self._worker is None:
            raise InvalidState("this engine is not started: it has no health yet")
        scheduler = self._worker.scheduler
        return Health(
            last_poll=scheduler.last_poll,
            success_rate=scheduler.breaker.success_rate,
            circuit_open=scheduler.breaker.open,
            lag=scheduler.lag,
            claimed=self._worker.claimed,
            cached=self._worker.cached,
            watched=scheduler.watched,
        )

"""A small TCP proxy between one process and one server, whose lines can be cut, slow or dead."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

CHUNK = 64 * 1024
_PUMPS = ("up", "down")


class Proxy:
    """Listens on a free port and passes everything on, unless told otherwise.

    Args:
        host: The server's.
        port: The server's.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._lines: set[asyncio.Task[None]] = set()
        self._delay = 0.0
        self._refuses = False
        self._stalled: set[str] = set()
        self._lossy = False
        self._healed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0)  # a line that has not begun could not close its connection
        lines = list(self._lines)
        self.cut()
        await asyncio.gather(*lines, return_exceptions=True)

    # -- faults -----------------------------------------------------------------------------------

    def cut(self, *, refuse: bool = False) -> None:
        """Cut all connections; with `refuse`, take no new ones until `heal`."""
        self._refuses = refuse
        for line in self._lines:
            line.cancel()

    def slow(self, seconds: float) -> None:
        """Hold everything back for so long, in each direction."""
        self._delay = seconds

    def stall(self, *directions: str, lossy: bool) -> None:
        """Pass nothing on until `heal`, with no sign of it (`up`: to the server, `down`: from it).

        Args:
            lossy: What comes meanwhile never arrives: the connections are cut at `heal`. Else it
                arrives late.
        """
        self._stalled = set(directions or _PUMPS)
        self._lossy = lossy
        self._healed.clear()

    def heal(self) -> None:
        """Pass everything on again."""
        if self._stalled and self._lossy:
            self.cut()
        self._refuses = False
        self._delay = 0.0
        self._stalled = set()
        self._healed.set()

    # -- lines ------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._lines.add(task)
        try:
            if not self._refuses:
                await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._lines.discard(task)
            await _abort(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, server = await asyncio.open_connection(*self._target)
        pumps = [
            asyncio.ensure_future(self._pump("up", reader, server)),
            asyncio.ensure_future(self._pump("down", upstream, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            await _abort(server)

    async def _pump(
        self, direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        while data := await source.read(CHUNK):
            while direction in self._stalled:
                await self._healed.wait()
            if self._delay:
                await asyncio.sleep(self._delay)
            sink.write(data)
            await sink.drain()


async def _abort(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        writer.transport.abort()
        writer.close()
        await writer.wait_closed()

"""`Helper`: another process of the benchmarks, spoken to in lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_ROOT = Path(__file__).parents[1]
_PATIENCE = 600.0
_STOP = 15.0


class Helper:
    """A process of `python -m benchmarks.<module>`; it ends at the end of its input.

    Args:
        module: Within `benchmarks`.
        arguments: Its command line.
        greets: Whether it says something before it is ready.
    """

    def __init__(self, module: str, *arguments: str, greets: bool = False) -> None:
        self.greeting = ""
        self._greets = greets
        self._command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=_ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            if self._greets:
                self.greeting = await self.line()
            await self.expect("ready")
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._running()
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP):
                await process.wait()
        except TimeoutError:
            await self.kill()

    async def ask(self, line: str) -> str:
        """Say a line; return its answer."""
        process = self._running()
        assert process.stdin is not None
        process.stdin.write(f"{line}\n".encode())
        return await self.line()

    async def line(self) -> str:
        """Return the next line that it says.

        Raises:
            RuntimeError: It has ended.
        """
        process = self._running()
        assert process.stdout is not None
        async with asyncio.timeout(_PATIENCE):
            found = await process.stdout.readline()
        if not found:
            raise RuntimeError(f"{' '.join(self._command)} has ended; its errors are above")
        return found.decode().strip()

    async def expect(self, word: str) -> None:
        """Read a line.

        Raises:
            RuntimeError: It is another one.
        """
        found = await self.line()
        if found != word:
            raise RuntimeError(f"{' '.join(self._command)} said {found!r} instead of {word!r}")

    async def kill(self) -> None:
        """End it by SIGKILL."""
        process = self._running()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        await process.wait()

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "it was never started"
        return self._process

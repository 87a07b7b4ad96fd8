"""`CrashTest`: one workflow, run with a crash before and after every write in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

from streamline.events import Event, EventBus
from streamline.handles import RunHandle
from streamline.model import Commit, EntryKind, Status
from streamline.testing.process import CommitHook, WriteHook

R = TypeVar("R")

MAX_SECONDS = 60.0
"""How long one run of the workflow may really take."""


class Crashable(Protocol):
    """An environment, as far as a crash test needs it."""

    events: EventBus
    before_commit: CommitHook
    after_commit: CommitHook
    before_write: WriteHook
    after_write: WriteHook

    async def start(self) -> Any: ...
    async def stop(self) -> None: ...
    def crash_soon(self) -> None: ...


class CrashPoint:
    """Counts writes, lets the worker die at one of them, and sees that no recorded step runs.

    Args:
        environment: Whose worker dies.
        at: The number of the write, from 1; 0 for none.
        before: Whether to die before it rather than after.
    """

    def __init__(self, environment: Crashable, at: int, *, before: bool) -> None:
        self.writes: int = 0
        self.violations: list[str] = []
        self._environment = environment
        self._at = at
        self._before = before
        self._recorded: set[tuple[str, str]] = set()
        environment.before_commit = self._before_commit
        environment.after_commit = self._after_commit
        environment.before_write = self._before_write
        environment.after_write = self._after_write
        environment.events.on("step:started", self._step_started)

    def _before_commit(self, commit: Commit) -> bool:
        return self._before_write("commit")

    def _before_write(self, verb: str) -> bool:
        self.writes += 1
        return self._before and self._dies()

    def _after_commit(self, commit: Commit) -> bool:
        if commit.continuation is not None:  # the next generation runs them again
            self._recorded = {each for each in self._recorded if each[0] != commit.run_id}
        steps = (entry.id for entry in commit.entries if entry.kind is EntryKind.STEP)
        self._recorded.update((commit.run_id, step) for step in steps)
        return self._after_write("commit")

    def _after_write(self, verb: str) -> bool:
        return not self._before and self._dies()

    def _dies(self) -> bool:
        if self.writes != self._at:
            return False
        self._environment.crash_soon()
        return True

    def _step_started(self, event: Event) -> None:
        if (event.run_id, event.step) in self._recorded:
            self.violations.append(f"step {event.step!r} ran again after it was recorded")


class CrashTest(Generic[R]):
    """Compares crashed runs with the uncrashed one.

    Args:
        sibling: Returns a new environment.
        start: Starts the run on the current engine.
        script: Speaks to it meanwhile.
    """

    def __init__(
        self,
        sibling: Callable[[], Crashable],
        start: Callable[[], Awaitable[RunHandle[R]]],
        script: Callable[[RunHandle[R]], Awaitable[None]] | None,
    ) -> None:
        self._sibling = sibling
        self._start = start
        self._script = script

    async def run(self) -> R:
        """Run all crashes.

        Returns:
            The result of the workflow.

        Raises:
            AssertionError: A crash changed the outcome, or a recorded step ran again.
            RunFailed: The workflow fails, in the same way each time.
        """
        expected, result, writes = await self._run_once(0, before=False)
        for at in range(1, writes + 1):
            for before in (True, False):
                outcome, _, _ = await self._run_once(at, before=before)
                if outcome != expected:
                    raise AssertionError(
                        f"after a crash {_place(at, writes, before)} the outcome was {outcome}, "
                        f"without it was {expected}"
                    )
        if isinstance(result, BaseException):
            raise result
        return result

    async def _run_once(self, at: int, *, before: bool) -> tuple[Any, R | Exception, int]:
        environment = self._sibling()
        point = CrashPoint(environment, at, before=before)
        await environment.start()
        try:
            handle = await self._start()
            script = asyncio.ensure_future(self._speak(handle))
            try:
                document = await handle.wait(MAX_SECONDS)
            except TimeoutError:
                stuck = await handle.get()
                raise AssertionError(
                    f"after a crash {_place(at, point.writes, before)} the run is stuck as "
                    f"{stuck.status.value}, its journal being {stuck.journal}"
                ) from None
            finally:
                script.cancel()
                await asyncio.gather(script, return_exceptions=True)
            if point.violations:
                raise AssertionError(
                    f"with a crash {_place(at, point.writes, before)}: {point.violations}"
                )
            error = document.error
            outcome = (
                document.status,
                await handle.load(document.output),
                None if error is None else (error.code, error.type, error.message, error.step),
            )
            return outcome, await _result(handle, document.status), point.writes
        finally:
            await environment.stop()

    async def _speak(self, handle: RunHandle[R]) -> None:
        if self._script is not None:
            await self._script(handle)


async def _result(handle: RunHandle[R], status: Status) -> R | Exception:
    if status is Status.DONE:
        return await handle.result()
    try:
        return await handle.result()
    except Exception as error:
        return error


def _place(at: int, writes: int, before: bool) -> str:
    return f"{'before' if before else 'after'} write {at} of {writes}"

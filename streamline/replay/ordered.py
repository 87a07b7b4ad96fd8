"""What makes asyncio deterministic where it goes by the addresses of objects.

Tasks and futures of a `ReplayLoop` hash by their creation order, so that sets of them (in
`asyncio.wait`, `TaskGroup`, a body's own) iterate alike on every replay. The three functions below
need more than that. They are put in place once, for the whole process, and act on a `ReplayLoop`
only: put in place for the time of a turn, they would come and go under the bodies of other threads.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from asyncio import events, tasks
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, cast, runtime_checkable

from streamline.errors import BodyNotPure


@runtime_checkable
class OrderedLoop(Protocol):
    """A loop whose tasks and futures hash by creation order."""

    def next_order(self) -> int:
        """Return the hash of the next task or future."""
        ...

    def unfinished_tasks(self) -> set[asyncio.Task[Any]]:
        """Return the tasks that aren't done, put into the set in creation order."""
        ...


class ReplayFuture(asyncio.Future[Any]):
    """A future that hashes by the order in which futures and tasks are created or first hashed."""

    # Few futures are ever hashed, and the first time comes at the same point on every replay.
    _order: int | None = None

    def __hash__(self) -> int:
        if self._order is None:
            self._order = cast("OrderedLoop", self.get_loop()).next_order()
        return self._order


# -- gather ---------------------------------------------------------------------------------------

_Gathering: type[asyncio.Future[Any]] = tasks._GatheringFuture  # type: ignore[attr-defined]


class _OrderedGathering(_Gathering):  # type: ignore[valid-type, misc]
    """What `gather` returns. Without this, `asyncio.wait([gather(...), gather(...)])` is a race."""

    def __init__(self, children: Any, *, loop: Any) -> None:
        ordered = isinstance(loop, OrderedLoop)
        self._order = loop.next_order() if ordered else object.__hash__(self)
        super().__init__(children, loop=loop)

    def __hash__(self) -> int:
        return cast("int", self._order)


# -- as_completed ---------------------------------------------------------------------------------

_as_completed = asyncio.as_completed


@functools.wraps(_as_completed)
def _ordered_as_completed(fs: Any, *, timeout: float | None = None) -> Any:
    # It puts its coroutines into a set before it starts them; so start them in the order given.
    if isinstance(events._get_running_loop(), OrderedLoop):
        fs = [asyncio.ensure_future(item) for item in dict.fromkeys(fs)]
    return _as_completed(fs, timeout=timeout)


def _codes(function: Any) -> Iterator[Any]:
    code = function.__code__
    yield code
    yield from (constant for constant in code.co_consts if hasattr(constant, "co_code"))


_new_class = getattr(tasks, "_AsCompletedIterator", None)  # from 3.13 on
_UNORDERED = frozenset(
    [*_codes(_as_completed), *(() if _new_class is None else _codes(_new_class.__init__))]
)


def refuse_unordered(coro: Coroutine[Any, Any, Any], run_id: str) -> None:
    """Refuse tasks that `as_completed` makes itself: it was imported by name, past our order.

    Call it from `create_task` alone: it looks at the frames above.
    """
    frame = sys._getframe(2)
    for _ in range(3):
        if frame.f_code in _UNORDERED:
            coro.close()
            raise BodyNotPure(
                f"Run {run_id!r}: `from asyncio import as_completed` starts coroutines in an "
                "order that differs from replay to replay. Call it as asyncio.as_completed(), or "
                "give it tasks.",
                run_id=run_id,
            )
        if frame.f_back is None:
            return
        frame = frame.f_back


# -- all_tasks ------------------------------------------------------------------------------------

_all_tasks: Callable[..., set[asyncio.Task[Any]]] = asyncio.all_tasks


@functools.wraps(_all_tasks)
def _ordered_all_tasks(loop: Any = None) -> set[asyncio.Task[Any]]:
    # asyncio's own goes through the tasks of all loops, in an order that depends on the others.
    asked = events._get_running_loop() if loop is None else loop
    return asked.unfinished_tasks() if isinstance(asked, OrderedLoop) else _all_tasks(loop)


def install() -> None:
    """Put the ordered functions in place."""
    for module in (asyncio, tasks):
        vars(module).update(as_completed=_ordered_as_completed, all_tasks=_ordered_all_tasks)
    tasks._GatheringFuture = _OrderedGathering  # type: ignore[attr-defined]

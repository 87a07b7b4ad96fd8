"""A player: runs a body purely in memory, records its journal, and replays it.

What the worker does with a real loop, a store and a clock is decided here by a seeded generator: in
which order steps end, when timers fire, when messages and a cancel come in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, overload

import msgspec

from streamline.codec import encode, encode_exception
from streamline.definitions import Step, Workflow
from streamline.definitions.decorators import step as _step
from streamline.definitions.decorators import workflow as _workflow
from streamline.definitions.registry import Registry
from streamline.errors import ErrorCode
from streamline.model import Entry, EntryKind, Input, Run, Status
from streamline.replay import (
    CANCEL,
    Cancelled,
    Execution,
    Failed,
    Outcome,
    Returned,
    SlotCommand,
    StepCommand,
    TimerCommand,
)

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = 1_000_000
played: list[Execution] = []
"""All bodies that a test began; to be evicted at its end."""


@overload
def step(fn: Callable[..., Any], /) -> Any: ...
@overload
def step(**options: Any) -> Callable[[Any], Any]: ...
def step(fn: Any = None, **options: Any) -> Any:
    """Make a step in a registry of its own, so that tests can't clash."""
    options.setdefault("registry", Registry())
    if fn is not None:
        options.setdefault("name", fn.__name__)
        return _step(**options)(fn)
    return lambda fn: _step(**{"name": fn.__name__, **options})(fn)


@overload
def workflow(fn: Callable[..., Any], /) -> Any: ...
@overload
def workflow(**options: Any) -> Callable[[Any], Any]: ...
def workflow(fn: Any = None, **options: Any) -> Any:
    """Make a workflow in a registry of its own."""
    options.setdefault("registry", Registry())
    if fn is not None:
        return _workflow(**options)(fn)
    return lambda fn: _workflow(**options)(fn)


class Turn(msgspec.Struct, frozen=True):
    """What one entry (or the start) made the body ask for."""

    issued: tuple[tuple[str, str], ...]  # kind and id, in order
    withdrawn: tuple[str, ...]
    open: tuple[str, ...]
    outcome: str


class Recording(msgspec.Struct):
    """One run as it went: its journal, and what each entry led to (the start first)."""

    run: Run
    workflow: Any
    journal: list[Entry]
    turns: list[Turn]
    outcome: Outcome | None
    execution: Execution

    @property
    def ids(self) -> list[str]:
        """The ids of all commands in the order of their issue."""
        return [id_ for turn in self.turns for _, id_ in turn.issued]

    @property
    def value(self) -> Any:
        """What the body returned."""
        assert isinstance(self.outcome, Returned), self.outcome
        return self.outcome.value

    @property
    def error(self) -> BaseException:
        """What the body raised."""
        assert isinstance(self.outcome, Failed), self.outcome
        return self.outcome.error


def make_run(flow: Workflow[..., Any], *args: Any, run_id: str = "run-1", **kwargs: Any) -> Run:
    """Return a run that was just claimed for the first time."""
    what = "the arguments"
    given: Input = flow.signature.encode_input(args, kwargs, what=what, limit=LIMIT)
    return Run(
        id=run_id,
        workflow=flow.name,
        version=flow.version,
        code=flow.code,
        status=Status.RUNNING,
        input=given,
        python="3.x",
        created_at=EPOCH,
        updated_at=EPOCH,
        started_at=EPOCH,
    )


def describe(outcome: Outcome | None) -> str:
    """Return an outcome as text that two equal ones share."""
    if isinstance(outcome, Returned):
        return f"returned {outcome.value!r}"
    if isinstance(outcome, Failed):
        return f"failed {_error(outcome.error)}"
    return "cancelled" if isinstance(outcome, Cancelled) else "open"


def _error(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"{error.message}[{', '.join(_error(part) for part in error.exceptions)}]"
    return f"{type(error).__name__}({error})"


def turn_of(execution: Execution) -> Turn:
    """Take what the body asked for since the last call."""
    issued = tuple((type(c).__name__, c.id) for c in execution.open.take_issued())
    return Turn(
        issued=issued,
        withdrawn=tuple(execution.open.take_withdrawn()),
        open=tuple(execution.open),
        outcome=describe(execution.outcome),
    )


class Player:
    """Plays a run live; the seed decides what happens when.

    Args:
        flow: The workflow.
        args: Its arguments.
        seed: Of all decisions.
        messages: Channel (or slot id) and payload, each given once its slot is open.
        cancel_after: After how many entries a cancel comes in.
        first: Ids of commands that are answered before all others, in this order.
    """

    def __init__(
        self,
        flow: Any,
        *args: Any,
        seed: int = 0,
        run_id: str = "run-1",
        messages: Sequence[tuple[str, Any]] = (),
        cancel_after: int | None = None,
        first: Iterable[str] = (),
        run: Run | None = None,
        max_entries: int = 500,
    ) -> None:
        self.run = make_run(flow, *args, run_id=run_id) if run is None else run
        self.flow = flow
        self.rng = random.Random(seed)
        self.messages = list(messages)
        self.cancel_after = cancel_after
        self.first = list(first)
        self.at = EPOCH
        self.left = max_entries
        self.journal: list[Entry] = []
        self.turns: list[Turn] = []

    def play(self) -> Recording:
        """Play the run from its beginning to its end, or until nothing can happen any more."""
        execution = Execution(self.run, self.flow, limit=LIMIT)
        played.append(execution)
        execution.start()
        self._note(execution)
        return self._go_on(execution)

    def resume(self, recording: Recording, upto: int) -> Recording:
        """Replay a part of a recording with a fresh body, and go on live from there."""
        execution, turns = _replayed(recording.run, self.flow, recording.journal[:upto])
        self.journal = recording.journal[:upto]
        self.turns = turns
        self.at = self.journal[-1].at if self.journal else EPOCH
        return self._go_on(execution)

    def _go_on(self, execution: Execution) -> Recording:
        while execution.outcome is None and len(self.journal) < self.left:
            entry = self._next(execution)
            if entry is None:
                break
            self.journal.append(entry)
            execution.apply(entry)
            self._note(execution)
        return Recording(
            self.run, self.flow, self.journal, self.turns, execution.outcome, execution
        )

    def _note(self, execution: Execution) -> None:
        self.turns.append(turn_of(execution))
        self.journal.extend(self._entry(p, EntryKind.PATCH) for p in execution.new_patches)
        # A patch is applied on replay, as an entry of its own that changes nothing.
        self.turns.extend(
            Turn((), (), t.open, t.outcome) for t in self.turns[-1:] * len(execution.new_patches)
        )
        execution.new_patches.clear()

    def _entry(self, id_: str, kind: EntryKind, **fields: Any) -> Entry:
        return Entry(id=id_, kind=kind, at=self.at, fence=1, **fields)

    def _next(self, execution: Execution) -> Entry | None:
        if self.cancel_after is not None and len(self.journal) >= self.cancel_after:
            self.cancel_after = None
            return self._entry(CANCEL, EntryKind.MESSAGE, value="because")
        choices = self._choices(execution)
        if not choices:
            return None
        while self.first and self.first[0] not in choices and self.first[0] not in execution.open:
            self.first.pop(0)
        if self.first and self.first[0] in choices:
            command = choices[self.first.pop(0)]
        else:
            command = choices[self.rng.choice(list(choices))]
        return self._answer(command)

    def _choices(self, execution: Execution) -> dict[str, Any]:
        commands = list(execution.open.values())
        timers = [c for c in commands if isinstance(c, TimerCommand)]
        choices: dict[str, Any] = {c.id: c for c in commands if isinstance(c, StepCommand)}
        if timers:
            first = min(timers, key=lambda timer: timer.due)
            choices[first.id] = first
        for command in commands:
            if isinstance(command, SlotCommand) and self._message_for(command) is not None:
                choices[command.id] = command
        return choices

    def _message_for(self, command: SlotCommand) -> tuple[str, Any] | None:
        names = (command.id, command.slot.name)
        return next((message for message in self.messages if message[0] in names), None)

    def _answer(self, command: Any) -> Entry:
        self.at += timedelta(milliseconds=self.rng.randrange(5))
        if isinstance(command, TimerCommand):
            self.at = max(self.at, command.due)
            return self._entry(command.id, EntryKind.TIMER)
        if isinstance(command, SlotCommand):
            message = self._message_for(command)
            assert message is not None
            self.messages.remove(message)
            value = encode(message[1], what="a message", limit=LIMIT)
            return self._entry(command.id, EntryKind.MESSAGE, value=value)
        return self._step_ended(command)

    def _step_ended(self, command: StepCommand) -> Entry:
        step: Step[..., Any] = command.step
        try:
            value = step.fn(*command.args, **command.kwargs)
            value = _run_through(value) if step.is_async else value
        except Exception as error:
            failure = encode_exception(error, code=ErrorCode.STEP_FAILED, step=command.id)
            return self._entry(command.id, EntryKind.STEP, error=failure)
        return self._entry(
            command.id, EntryKind.STEP, value=encode(value, what="a result", limit=LIMIT)
        )


def _run_through(coroutine: Any) -> Any:
    """Run a coroutine that awaits nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("steps of these tests await nothing")


def _replayed(run: Run, flow: Any, journal: list[Entry]) -> tuple[Execution, list[Turn]]:
    execution = Execution(run, flow, limit=LIMIT, recorded=journal)
    played.append(execution)
    execution.start(replaying=bool(journal))
    turns = [turn_of(execution)]
    for entry in journal:
        execution.replay([entry])
        turns.append(turn_of(execution))
    return execution, turns


def whole_commits(journal: list[Entry], upto: int) -> int:
    """Return a place to cut a journal: a patch is in one commit with the entry that led to it."""
    while upto < len(journal) and journal[upto].kind is EntryKind.PATCH:
        upto += 1
    return upto


def replay(recording: Recording, flow: Any = None, upto: int | None = None) -> Recording:
    """Replay a recording (or the beginning of it) with a fresh body, perhaps of other code."""
    flow = recording.workflow if flow is None else flow
    journal = recording.journal[:upto]
    execution, turns = _replayed(recording.run, flow, journal)
    return Recording(recording.run, flow, journal, turns, execution.outcome, execution)


def replay_at_once(recording: Recording) -> Execution:
    """Replay a recording as a worker does that takes the run over: all entries in one call."""
    execution = Execution(
        recording.run, recording.workflow, limit=LIMIT, recorded=recording.journal
    )
    played.append(execution)
    execution.start(replaying=bool(recording.journal))
    execution.replay(recording.journal)
    return execution


def assert_replays(recording: Recording) -> Recording:
    """Check that a replay asks for the same, in the same order, and ends the same."""
    again = replay(recording)
    assert again.turns == recording.turns
    assert describe(again.outcome) == describe(recording.outcome)
    assert again.execution.context == recording.execution.context
    at_once = replay_at_once(recording)
    assert tuple(at_once.open) == again.turns[-1].open
    assert describe(at_once.outcome) == describe(recording.outcome)
    assert at_once.context == recording.execution.context
    return again


def play(flow: Any, *args: Any, **options: Any) -> Recording:
    """Play a run and check that it replays."""
    recording = Player(flow, *args, **options).play()
    assert_replays(recording)
    return recording

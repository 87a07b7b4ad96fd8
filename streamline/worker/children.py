"""What a driver has to do with the children of its run: which to start, what to tell whom.

The document shows a child among its open slots before the run of that child exists. So whatever
ends the parent, or makes it give the child up, finds in the document which runs may be out there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from streamline.codec import Failure
from streamline.model import (
    Dispatch,
    Entry,
    EntryKind,
    Message,
    MessageKind,
    Run,
    Slot,
    SlotKind,
    Status,
)
from streamline.outbox import abandonments, is_outdated, outcome_failure, outcomes, own_copy
from streamline.replay import ChildCommand, Execution
from streamline.worker.ending import Ending
from streamline.worker.inbox import Inbox


def children_of(body: Execution) -> list[ChildCommand]:
    """Return the children whose start or end the body waits for."""
    return list(body.open.children.values())


# -- starting -------------------------------------------------------------------------------------


def unstarted(body: Execution, facts: Iterable[Entry]) -> list[ChildCommand]:
    """Return the children that are still to be made durable."""
    if not body.open.children:
        return []
    commands = [command for command in children_of(body) if not command.started]
    answered = {fact.id for fact in facts}
    return [command for command in commands if command.id not in answered]


def unseen(calling: Collection[ChildCommand], awaiting: Sequence[Slot]) -> bool:
    """Whether children are to be started that the document doesn't show."""
    # By the run, too: newer code may give another id to a call that was not made yet.
    shown = {(slot.id, slot.name) for slot in awaiting} if calling else ()
    return any((command.id, command.run_id) not in shown for command in calling)


def strays(body: Execution, told: Iterable[Message]) -> set[str]:
    """Return the ids of outcomes that tell of no run that the body waits for.

    It has given the run up; or it is another of the same id, which was restarted since.
    """
    commands = children_of(body)
    return {each.id for each in told if not any(_tells(each, command) for command in commands)}


# -- ends -----------------------------------------------------------------------------------------


def untold(body: Execution, inbox: Inbox) -> list[ChildCommand]:
    """Return the started children of whose end nothing is told in the inbox."""
    started = [command for command in children_of(body) if command.started]
    told = inbox.all_of(MessageKind.OUTCOME) if started else []
    return [command for command in started if not any(_tells(each, command) for each in told)]


def _tells(message: Message, command: ChildCommand) -> bool:
    """Whether an outcome is of the run that a call started."""
    return message.name == command.run_id and not is_outdated(message.id, command.stamp)


def ends_of(ended: Iterable[Run], commands: Iterable[ChildCommand], at: datetime) -> list[Entry]:
    """Return the ends of runs, whose outputs are at hand, as facts for each call of them."""
    runs = {run.id: run for run in ended}
    return [
        _outcome(command, run.output, outcome_failure(run), at)
        for command in commands
        if (run := runs.get(command.run_id)) is not None
    ]


def outcome_entries(
    message: Message, commands: Iterable[ChildCommand], at: datetime
) -> list[Entry]:
    """Return what a message tells as facts, for each started command; the first one took it.

    None if it tells of an earlier run, for which nothing waits any more.
    """
    told = [each for each in commands if each.started and _tells(message, each)]
    if not told:
        return []
    first, *others = (_outcome(each, message.payload, message.error, at) for each in told)
    # What the message brought is kept where it was put; each of the others has a copy of its own.
    copies = [entry.with_value(own_copy(entry.value)) for entry in others]
    return [msgspec.structs.replace(first, message=message.id), *copies]


def _outcome(command: ChildCommand, output: Any, error: Failure | None, at: datetime) -> Entry:
    value = None if error is not None else output
    return Entry(id=command.id, kind=EntryKind.OUTCOME, at=at, fence=0, value=value, error=error)


# -- telling --------------------------------------------------------------------------------------


def dispatches(
    body: Execution,
    run: Run,
    inbox: Inbox,
    *,
    awaiting: Sequence[Slot],
    pending: Sequence[Entry],
    ending: Ending | None,
    forced: bool,
) -> list[Dispatch]:
    """Return what other runs are to be told with the next commit.

    Args:
        body: The body.
        run: The run as stored.
        inbox: Its inbox.
        awaiting: The slots that the document shows.
        pending: The entries that the commit brings.
        ending: How the run ends by it, if it does.
        forced: Whether it ends for a reason that isn't its body's, which may not even have run.
    """
    rev = run.rev + 1
    requests = [
        Dispatch(kind=kind, to=to, rev=rev, reason=reason) for kind, to, reason in body.requests
    ]
    shown = [slot for slot in awaiting if slot.kind is SlotKind.CHILD]
    if shown:
        over = {entry.id for entry in pending if _is_over(entry)}
        kept = _kept(body, shown, ending, forced=forced)
        given_up = (s for s in shown if s.id not in over and (s.id, s.name) not in kept)
        requests += abandonments(given_up, rev)
    if ending is not None and ending.status.ended:
        requests += outcomes(msgspec.structs.replace(run, followers=inbox.followers), rev)
    return requests


def last_dispatches(run: Run) -> tuple[Dispatch, ...]:
    """Return what a run has to tell that ends as cancelled without its body."""
    rev = run.rev + 1
    return (*abandonments(run.awaiting, rev), *outcomes(run, rev))


def failing_dispatches(run: Run) -> tuple[Dispatch, ...]:
    """Return what a run has to tell that the engine fails: its detached children go on."""
    attached = (slot for slot in run.awaiting if not slot.detached)
    rev = run.rev + 1
    return (*abandonments(attached, rev), *outcomes(run, rev))


def _is_over(entry: Entry) -> bool:
    """Whether by this entry a child has ended, or never began."""
    never_began = entry.kind is EntryKind.CHILD and entry.error is not None
    return never_began or entry.kind is EntryKind.OUTCOME


def _kept(
    body: Execution, shown: Iterable[Slot], ending: Ending | None, *, forced: bool
) -> set[tuple[str, str]]:
    """Return the slots whose children go on, each by its id and the run's."""
    if ending is None:
        return {(command.id, command.run_id) for command in children_of(body)}
    if ending.status is Status.CANCELLED:
        return set()
    if forced:
        return {(slot.id, slot.name) for slot in shown if slot.detached}
    # What something still waits for as the body ends is given up with it, like a task.
    detached = (c for c in children_of(body) if c.slot.detached and not c.waiters)
    return {(command.id, command.run_id) for command in detached}

"""What is stored and what is asked of a store: plain frozen data, no behaviour beyond itself.

`Run` mirrors one document of `workflow_runs`; its journal is made of `Entry`s. A `Commit` is the
one conditional update by which a worker writes. Payloads (`input`, `value`, `output`, `payload`,
...) are BSON-native data made by the codec; or a `PayloadRef`, where they are kept outside of the
document; or, outside of stores, a `LargePayload`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from streamline.codec import Failure, LargePayload, PayloadRef


class Status(StrEnum):
    """Where a run is in its life."""

    DRAFT = "draft"  # due later, never claimed yet
    QUEUED = "queued"  # due now, held by nobody
    RUNNING = "running"  # claimed by a worker
    WAITING = "waiting"  # parked: for a time, a retry or a message
    PAUSED = "paused"  # set aside until `unpause`
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether a run in this status will never go on."""
        return self in ENDED


INPUT = "input"
OUTPUT = "output"
"""The places of a run's input and output; see `Entry.place` and `Message.place`."""

SUSPECT = range(3, 6)
"""A run that went stale so often is put off before it is claimed; see `RunStore.claim_due`."""

MIN_PUT_OFF = 0.25
"""The least share of its delay that a suspect is put off for: not so short that the same look for
due runs finds it again."""

ENDED = frozenset({Status.DONE, Status.FAILED, Status.CANCELLED})


class EntryKind(StrEnum):
    """What a journal entry tells."""

    STEP = "step"  # a step ended, with a value or an error
    TIMER = "timer"  # a timer fired
    MESSAGE = "message"  # a slot took a message; or a cancel reached the run
    ATTEMPT = "attempt"  # an attempt of a step failed and another will follow; resolves nothing
    PATCH = "patch"  # the run took the new side of `patched()`; resolves nothing
    CHILD = "child"  # a child was started: its value is `run` (its id), `stamp` (see `outbox`) and
    # `detached`; or it could not be
    OUTCOME = "outcome"  # a child ended, with a value or an error


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One thing that happened to a run.

    `id` is the id of the command that it answers (`charge`, `sleep#3`), `at` when it happened by
    the server's clock, `fence` the claim under which it was written.
    """

    id: str
    kind: EntryKind
    at: datetime
    fence: int
    value: Any = None
    error: Failure | None = None
    context: dict[str, Any] | None = None  # what the step set, merged at this point
    attempt: int = 0
    started_at: datetime | None = None
    retry_at: datetime | None = None
    message: str | None = None  # the id of the message taken

    @property
    def place(self) -> str:
        """Where in its run its value belongs, as `PayloadCodec` and `RunStore` name it.

        What a message brought stays where it was put when the message was sent.
        """
        if self.message is not None and type(self.value) in (PayloadRef, LargePayload):
            return f"inbox/{self.message}"
        return f"journal/{self.kind.value}/{self.id}/{self.attempt}"

    def with_value(self, value: Any) -> Entry:
        """Return it with another value."""
        return self if value is self.value else msgspec.structs.replace(self, value=value)


class MessageKind(StrEnum):
    """What a message wants."""

    SEND = "send"  # to the mailbox channel `name`
    RESUME = "resume"  # to the slot with the id `name`
    CANCEL = "cancel"
    PAUSE = "pause"
    OUTCOME = "outcome"  # the run `name`, which this one called or follows, has ended


CONTROL = frozenset({MessageKind.CANCEL, MessageKind.PAUSE})
"""Messages that an inbox always has room for; so that few can lie there, see `RunStore.post`."""


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """Something for a run that its body hasn't taken yet. `id` is unique within the run."""

    id: str
    kind: MessageKind
    at: datetime
    name: str = ""
    payload: Any = None
    error: Failure | None = None  # of an outcome that is none

    @property
    def place(self) -> str:
        """Where in its run its payload belongs; see `Entry.place`."""
        return f"inbox/{self.id}"

    def with_payload(self, payload: Any) -> Message:
        """Return it with another payload."""
        return self if payload is self.payload else msgspec.structs.replace(self, payload=payload)


class SlotKind(StrEnum):
    """Which messages fit an open slot."""

    WAIT = "wait"
    RECEIVE = "receive"
    CHILD = "child"


class Slot(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A place where the body waits for a message.

    `name` is the wait's name, the channel, or the id of the child's run. A `detached` child was
    only started, and outlives the run unless that is cancelled.
    """

    id: str
    kind: SlotKind
    name: str
    since: datetime
    reason: str | None = None
    data: Any = None
    type: Any = None  # a type reference; see codec.typeref
    deadline: datetime | None = None
    detached: bool = False


class Attempt(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A step that is running: its id, the number of the attempt (from 1), its last heartbeat."""

    id: str
    attempt: int
    started_at: datetime
    heartbeat: Any = None


class Input(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a run began with: its encoded arguments, and its own state.

    The context in here never changes, unlike the run's: each replay begins with it. Large arguments
    are one payload, of `[args, kwargs]`, that stands in `args` alone.
    """

    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    context: dict[str, Any] = {}

    @property
    def payload(self) -> LargePayload | PayloadRef | None:
        """The large payload that the arguments are, if they are one."""
        first = self.args[0] if len(self.args) == 1 else None
        return first if isinstance(first, (LargePayload, PayloadRef)) else None

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and the named arguments, encoded. They must be at hand."""
        payload = self.payload
        if payload is None:
            return self.args, self.kwargs
        assert isinstance(payload, LargePayload)
        args, kwargs = payload.native()
        return args, kwargs

    def with_payload(self, payload: LargePayload | PayloadRef) -> Input:
        """Return it with a payload in the place of the arguments."""
        return Input(args=[payload], kwargs={}, context=self.context)

    def map_payload(self, change: Callable[[str, Any], Any]) -> Input:
        """Return it with what may be a large payload replaced; see `Run.map_payloads`."""
        if len(self.args) != 1:
            return self
        return msgspec.structs.replace(self, args=[change(INPUT, self.args[0])])


class Past(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What a run keeps of its earlier generations.

    `input` is what the run was started with, `at` when its present generation began, `rev` the
    run's at that moment. `taken` are the ids of the last messages taken before it, oldest first: a
    repeated one counts once still.
    """

    input: Input
    at: datetime
    rev: int
    taken: list[str] = []


class Parent(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What started a run from within another: that run, the slot of the call, its code.

    A `detached` child was only started, and nobody may wait for it.
    """

    run: str
    slot: str
    code: str
    epoch: int = 0
    detached: bool = False


class DispatchKind(StrEnum):
    """What a run has to tell another."""

    OUTCOME = "outcome"  # how it ended
    CANCEL = "cancel"  # to end
    ABANDON = "abandon"  # to end, if it is a child of the sender's


class Dispatch(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """Something that a run has still to tell another. `rev` is the run's when it came up."""

    kind: DispatchKind
    to: str
    rev: int
    reason: Any = None


class Run(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One run, as stored. `journal` may be left out of what a store returns where it says so.

    `code` names the code that may take the run: the workflow's name, or `name@version` of a pinned
    one. `due_at` is when any worker may next claim it: now when queued, the earliest timer or
    retry when waiting, the end of the lease when running, absent when only a message can wake it.

    `epoch` counts how often the id began anew: by a restart, a rewind, or as the next generation.
    `parent` started it from within a run, `followers` are runs that called it when it was there
    already; they are told of its end. `outbox` is what it has still to tell others, `outbox_due`
    when any worker may see to that.
    """

    id: str = msgspec.field(name="_id")
    workflow: str
    version: str
    code: str
    status: Status
    input: Input
    python: str  # minor version under which it (its present generation) began
    created_at: datetime
    updated_at: datetime
    context: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    tags: list[str] = []
    tenant: str | None = None
    priority: int = 0
    output: Any = None
    error: Failure | None = None
    journal: list[Entry] = []
    journal_base: int = 0
    rev: int = 0
    inbox: list[Message] = []
    inbox_seq: int = 0
    awaiting: list[Slot] = []
    attempts: list[Attempt] = []
    recoveries: int = 0
    worker: str | None = None
    claim: str | None = None
    fence: int = 0
    due_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    ended_by: str | None = None  # the worker that drove it to its end
    expire_after: float | None = None  # seconds from the end to the deletion
    expire_at: datetime | None = None
    generation: int = 1  # +1 with every `continue_as_new`, which empties the journal
    past: Past | None = None  # None in the first generation
    spilled: bool = False  # whether payloads of it are, or were, kept outside
    epoch: int = 0
    parent: Parent | None = None
    followers: list[str] = []
    outbox: list[Dispatch] = []
    outbox_due: datetime | None = None

    @property
    def first_input(self) -> Input:
        """What the run was started with; `input` is what its present generation began with."""
        return self.input if self.past is None else self.past.input

    @property
    def body_began_at(self) -> datetime:
        """The instant at which the body begins, on each replay of the present generation."""
        return self.began_at if self.past is None else self.past.at

    @property
    def body_began_rev(self) -> int:
        """The `rev` at which the present generation began; past it, its body has begun before."""
        return 0 if self.past is None else self.past.rev

    @property
    def began_at(self) -> datetime:
        """The instant at which the run as a whole began."""
        return self.started_at or self.created_at

    def map_payloads(self, change: Callable[[str, Any], Any]) -> Run:
        """Return the run with each payload that may be large replaced.

        Args:
            change: Takes the payload's place in the run, and the payload or reference there.
        """
        past = self.past
        if past is not None:
            past = msgspec.structs.replace(past, input=past.input.map_payload(change))
        return msgspec.structs.replace(
            self,
            input=self.input.map_payload(change),
            past=past,
            output=change(OUTPUT, self.output),
            journal=[entry.with_value(change(entry.place, entry.value)) for entry in self.journal],
            inbox=[each.with_payload(change(each.place, each.payload)) for each in self.inbox],
        )


class Claim(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who claims, and for how long. `id` is unique per call, so that what it took can be told."""

    id: str
    worker: str
    lease: float  # seconds
    ahead: float = 0.0  # seconds by which a waiting run may be claimed before it is due


class Continuation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a run goes on as its next generation: what replaces the fields of these names."""

    input: Input
    code: str
    version: str
    python: str
    generation: int
    past: Past


class Commit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One conditional update: what happened to a run and what follows from it.

    Applied only if the run still has `fence` and `rev`, and no message came in that would be passed
    over, nor a follower: `inbox_seq`, `open_slots`, `pause`, `uncancelled` and `followers` say what
    matters, the less the better, since what any message refuses never lands where they come in all
    the time. Then `rev` is one more. With `progress`, `recoveries` are 0 again. Fields that are
    None stay as they are, but `due_at`: a commit to `waiting` sets it or, if None, removes it; one
    to `running` keeps the lease; all others remove it.
    """

    run_id: str
    fence: int
    rev: int
    status: Status
    entries: tuple[Entry, ...] = ()
    progress: bool = False
    consumed: tuple[str, ...] = ()  # ids of messages that leave the inbox
    inbox_seq: int | None = None  # as far as is known: no message at all came in since
    open_slots: int | None = None  # how many, as far as is known: none of them was closed since
    pause: str | None = None  # the id of the pause that is obeyed: nobody took it back
    uncancelled: bool = False  # no cancel lies in the inbox but those that are consumed
    followers: int | None = None  # how many, as far as is known: none came since
    due_at: datetime | None = None
    awaiting: tuple[Slot, ...] | None = None
    attempts: tuple[Attempt, ...] | None = None
    context: Mapping[str, Any] | None = None
    output: Any = None
    error: Failure | None = None
    ended_at: datetime | None = None
    ended_by: str | None = None
    expire_at: datetime | None = None
    spilled: bool = False  # whether payloads of the run are, by now, kept outside
    archive: tuple[Entry, ...] = ()  # all entries now in the document, to be moved out of it
    journal_base: int = 0  # the index of the first of `archive` (its count is added by the commit)
    generation: int = 1  # the run's
    continuation: Continuation | None = None  # the run begins anew, as the next generation
    outbox: tuple[Dispatch, ...] = ()  # appended
    outbox_due: datetime | None = None  # given with an `outbox`

    @property
    def next_fence(self) -> int:
        """The run's fence once this has landed."""
        return self.fence if self.continuation is None else self.fence + 1


class CommitResult(StrEnum):
    """What became of a commit."""

    LANDED = "landed"
    INBOX_MOVED = "inbox_moved"  # a message came in that must be looked at; nothing was written
    LOST = "lost"  # the claim is another's, or the run has ended; nothing was written


class PostResult(StrEnum):
    """What became of a message."""

    POSTED = "posted"
    DUPLICATE = "duplicate"  # a message with this id was taken or lies there already
    NO_RUN = "no_run"
    ENDED = "ended"
    NO_SLOT = "no_slot"  # the slot to be closed isn't open
    PENDING = "pending"  # a cancel or pause lies there already; another would say no more
    FULL = "full"  # the inbox would grow past its limit


class Notice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A hint that a run changed. Hints may be lost or doubled; nothing may rely on them.

    One without a `run_id` says that a watch begins: what happened before it may have been missed.
    `fence` is given where the change raised it: whoever held the run before has lost it.
    """

    run_id: str = ""
    code: str | None = None
    status: Status | None = None
    due_at: datetime | None = None
    inbox_seq: int | None = None
    fence: int | None = None

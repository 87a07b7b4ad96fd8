"""The Beanie document of a run: for reading and querying, in the user's own `init_beanie` too.

It mirrors `model.Run`. The engine writes by conditional updates of its own, and its indexes belong
to the store; saving one of these documents would go behind the engine's back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import msgspec
from beanie import Document, init_beanie
from bson.objectid import ObjectId
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WrapSerializer
from pymongo.asynchronous.database import AsyncDatabase

from streamline.model import DispatchKind, EntryKind, MessageKind, Run, SlotKind, Status


def _aware(value: datetime) -> datetime:
    # A client that isn't `tz_aware` reads naive datetimes; BSON keeps UTC.
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


Instant = Annotated[datetime, AfterValidator(_aware)]


def _as_text(value: Any, serialize: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("payload"), ObjectId):
        return {**value, "payload": str(value["payload"])}
    return serialize(value)


# Where a large payload is kept outside there is a reference, `{"payload": ObjectId, "size": int}`.
_Payload = Annotated[Any, WrapSerializer(_as_text, when_used="json")]


class _Part(BaseModel):
    # Payloads may hold any bytes; as text they must survive `model_dump_json`.
    model_config: ClassVar[ConfigDict] = ConfigDict(ser_json_bytes="base64")


class RunInput(_Part):
    """The encoded arguments of a run, and the context that it began with."""

    args: list[_Payload] = []
    kwargs: dict[str, Any] = {}
    context: dict[str, Any] = {}


class RunFailure(_Part):
    """An exception as it is stored."""

    code: str
    type: str
    message: str
    traceback: str = ""
    step: str | None = None
    args: list[Any] | None = None
    attributes: dict[str, Any] = {}
    notes: list[str] = []
    cause: RunFailure | None = None
    parts: list[RunFailure] = []


class RunEntry(_Part):
    """One thing that happened to a run."""

    id: str
    kind: EntryKind
    at: Instant
    fence: int
    value: _Payload = None
    error: RunFailure | None = None
    context: dict[str, Any] | None = None
    attempt: int = 0
    started_at: Instant | None = None
    retry_at: Instant | None = None
    message: str | None = None


class RunMessage(_Part):
    """Something for a run that its body hasn't taken yet."""

    id: str
    kind: MessageKind
    at: Instant
    name: str = ""
    payload: _Payload = None
    error: RunFailure | None = None


class RunSlot(_Part):
    """A place where the body waits for a message."""

    id: str
    kind: SlotKind
    name: str
    since: Instant
    reason: str | None = None
    data: Any = None
    type: Any = None
    deadline: Instant | None = None
    detached: bool = False


class RunAttempt(_Part):
    """A step that is running."""

    id: str
    attempt: int
    started_at: Instant
    heartbeat: Any = None


class RunPast(_Part):
    """What a run keeps of its earlier generations."""

    input: RunInput
    at: Instant
    rev: int
    taken: list[str] = []


class RunParent(_Part):
    """What started a run from within another."""

    run: str
    slot: str
    code: str
    epoch: int = 0
    detached: bool = False


class RunDispatch(_Part):
    """Something that a run has still to tell another."""

    kind: DispatchKind
    to: str
    rev: int
    reason: Any = None


class _RunFields(_Part):
    """The fields of a run beside its id, apart from Beanie so that they need no connection."""

    workflow: str
    version: str
    code: str
    status: Status
    input: RunInput
    python: str
    created_at: Instant
    updated_at: Instant
    context: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    tags: list[str] = []
    tenant: str | None = None
    priority: int = 0
    output: _Payload = None
    error: RunFailure | None = None
    journal: list[RunEntry] = []
    journal_base: int = 0
    rev: int = 0
    inbox: list[RunMessage] = []
    inbox_seq: int = 0
    awaiting: list[RunSlot] = []
    attempts: list[RunAttempt] = []
    recoveries: int = 0
    worker: str | None = None
    claim: str | None = None
    fence: int = 0
    due_at: Instant | None = None
    started_at: Instant | None = None
    ended_at: Instant | None = None
    ended_by: str | None = None
    expire_after: float | None = None
    expire_at: Instant | None = None
    generation: int = 1
    past: RunPast | None = None
    spilled: bool = False
    epoch: int = 0
    parent: RunParent | None = None
    followers: list[str] = []
    outbox: list[RunDispatch] = []
    outbox_due: Instant | None = None


class WorkflowRun(_RunFields, Document):
    """One run, as a Beanie document of the collection `workflow_runs`."""

    id: str = Field(default="", description="The run's id")  # type: ignore[assignment]

    class Settings:
        name = "workflow_runs"
        use_state_management = False

    @classmethod
    def from_run(cls, run: Run) -> WorkflowRun:
        """Make the document of a run, with or without a connection."""
        fields = msgspec.to_builtins(run, builtin_types=(datetime, bytes, ObjectId))
        run_id = fields.pop("_id")
        checked = _RunFields.model_validate(fields)
        given = {name: getattr(checked, name) for name in checked.model_fields_set}
        # Beanie's __init__ looks for the collection; the fields are validated already.
        return cls.model_construct(id=run_id, **given)


# The database that an engine of this process bound last, if any did.
_bound_by_us: list[AsyncDatabase[Any]] = []


async def bind_documents(database: AsyncDatabase[Any]) -> None:
    """Let queries on `WorkflowRun` go to a database, unless the user's own `init_beanie` set one.

    With several engines they go to the database of the one started last; for another engine's
    documents use its handles, or a subclass of `WorkflowRun` in an `init_beanie` of its own.
    """
    if getattr(WorkflowRun, "_document_settings", None) is not None and not _bound_by_us:
        return
    await init_beanie(database=database, document_models=[WorkflowRun], skip_indexes=True)
    _bound_by_us[:] = [database]

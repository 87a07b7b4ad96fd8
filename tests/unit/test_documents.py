"""The Beanie document mirrors `model.Run`, field by field, in all its parts."""

from __future__ import annotations

import types
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from pydantic import BaseModel

from streamline.codec import Failure
from streamline.documents import (
    RunAttempt,
    RunDispatch,
    RunEntry,
    RunFailure,
    RunInput,
    RunMessage,
    RunParent,
    RunPast,
    RunSlot,
    WorkflowRun,
)
from streamline.model import (
    Attempt,
    Dispatch,
    DispatchKind,
    Entry,
    EntryKind,
    Input,
    Message,
    MessageKind,
    Parent,
    Past,
    Run,
    Slot,
    SlotKind,
    Status,
)

MIRRORS: dict[type[msgspec.Struct], type[BaseModel]] = {
    Run: WorkflowRun,
    Input: RunInput,
    Failure: RunFailure,
    Entry: RunEntry,
    Message: RunMessage,
    Slot: RunSlot,
    Attempt: RunAttempt,
    Past: RunPast,
    Parent: RunParent,
    Dispatch: RunDispatch,
}
BEANIES = {"revision_id"}
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def mirrored(type_: Any) -> Any:
    """Return what a type of a struct is in the document, in a form that can be compared."""
    origin = get_origin(type_)
    if origin is None:
        return MIRRORS.get(type_, type_)
    if origin is Annotated:  # an instant that is made aware
        return mirrored(get_args(type_)[0])
    parts = [mirrored(part) for part in get_args(type_)]
    return frozenset(parts) if origin in (Union, types.UnionType) else (origin, *parts)


def parts_of(type_: Any) -> Iterator[type[msgspec.Struct]]:
    """Yield the structs that a type is made of."""
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        yield type_
    for part in get_args(type_):
        yield from parts_of(part)


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


@pytest.mark.parametrize("struct", MIRRORS)
def test_the_document_has_the_fields_of_the_run(struct: type[msgspec.Struct]) -> None:
    stored = get_type_hints(struct)
    shown = MIRRORS[struct].model_fields
    assert shown.keys() - BEANIES == set(struct.__struct_fields__)
    for name, type_ in stored.items():
        assert mirrored(shown[name].annotation) == mirrored(type_), name


@pytest.mark.parametrize("struct", MIRRORS)
def test_what_is_left_out_of_the_document_is_read_as_in_the_run(
    struct: type[msgspec.Struct],
) -> None:
    for field in msgspec.structs.fields(struct):
        shown = MIRRORS[struct].model_fields[field.name]
        if field.name == "id":  # Beanie's documents can do without theirs
            continue
        required = default_of(field) is msgspec.NODEFAULT
        assert shown.is_required() == required, field.name
        if not required:
            assert shown.get_default(call_default_factory=True) == default_of(field), field.name


def test_no_part_of_a_run_is_without_a_mirror() -> None:
    found = {
        part
        for struct in MIRRORS
        for type_ in get_type_hints(struct).values()
        for part in parts_of(type_)
    }
    assert found == MIRRORS.keys() - {Run}


def test_a_document_shows_each_field_of_a_run() -> None:
    failure = Failure(code="c", type="t", message="m", traceback="tb", step="s", args=[1])
    failure = msgspec.structs.replace(
        failure, attributes={"a": 1}, notes=["n"], cause=failure, parts=[failure]
    )
    run = Run(
        id="r",
        workflow="w",
        version="1",
        code="w@1",
        status=Status.WAITING,
        input=Input(args=[b"\xff"], kwargs={"k": 1}, context={"c": 2}),
        python="3.11",
        created_at=NOW,
        updated_at=NOW,
        context={"x": 1},
        meta={"y": 2},
        tags=["t"],
        tenant="acme",
        priority=3,
        output={"o": [1]},
        error=failure,
        journal=[
            Entry(
                id="s",
                kind=EntryKind.STEP,
                at=NOW,
                fence=1,
                value=1,
                error=failure,
                context={"z": 1},
                attempt=2,
                started_at=NOW,
                retry_at=NOW,
                message="m1",
            )
        ],
        journal_base=4,
        rev=5,
        inbox=[
            Message(id="m", kind=MessageKind.SEND, at=NOW, name="ch", payload=[1], error=failure)
        ],
        inbox_seq=6,
        awaiting=[
            Slot(
                id="wait:a",
                kind=SlotKind.WAIT,
                name="a",
                since=NOW,
                reason="r",
                data=1,
                type="builtins:int",
                deadline=NOW,
                detached=True,
            )
        ],
        attempts=[Attempt(id="s", attempt=2, started_at=NOW, heartbeat={"h": 1})],
        recoveries=7,
        worker="w1",
        claim="c1",
        fence=8,
        due_at=NOW,
        started_at=NOW,
        ended_at=NOW,
        ended_by="w1",
        expire_after=9.0,
        expire_at=NOW,
        generation=2,
        spilled=True,
        past=Past(input=Input(args=["first"]), at=NOW, rev=3, taken=["m"]),
        epoch=1,
        parent=Parent(run="p", slot="s", code="w", epoch=2, detached=True),
        followers=["f"],
        outbox=[Dispatch(kind=DispatchKind.CANCEL, to="c", rev=3, reason="why")],
        outbox_due=NOW,
    )
    unset = [
        field.name
        for field in msgspec.structs.fields(Run)
        if field.name != "id" and getattr(run, field.name) == default_of(field)
    ]
    assert unset == [], "give each field a value of its own"
    shown = WorkflowRun.from_run(run).model_dump(exclude_unset=True)
    stored = msgspec.to_builtins(run, builtin_types=(datetime, bytes))
    assert shown == {"id": stored.pop("_id"), **stored}

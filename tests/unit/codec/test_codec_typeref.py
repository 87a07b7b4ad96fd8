from __future__ import annotations

import inspect
import sys
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import bson
import codec_shapes as s
import msgspec
import pytest

from streamline.codec import resolve_type, type_reference

TYPES: list[Any] = [
    int,
    Any,
    type(None),
    str | None,
    int | str | list[bytes],
    list[int],
    dict[str, list[s.User]],
    dict[UUID, Any],
    tuple[int, str],
    tuple[int, ...],
    tuple[()],
    set[datetime],
    frozenset[s.Colour],
    deque[int],
    Sequence[s.Plain],
    Literal["a", 1, True, None, b"x"],
    Literal[s.Colour.RED, "x"],
    s.Plain,
    s.Order,
    s.Options,
    s.Point,
    s.Car,
    s.User,
    s.Colour,
    s.Box[int],
    s.Box[list[s.Cat | s.Dog]],
    s.Page[int],
    s.Page[s.User],
    list,
    dict,
]


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_type_is_described_and_found_again(type_: Any) -> None:
    reference = type_reference(type_)

    assert reference is not None
    assert bson.decode(bson.encode({"v": reference}))["v"] == reference
    assert resolve_type(reference) == type_


@pytest.mark.parametrize(
    ("type_", "plain"),
    [
        (Annotated[int, "x"], int),
        (list[Annotated[s.Plain, {}]], list[s.Plain]),
        (s.UserId, int),
        (None, type(None)),
        (inspect.Parameter.empty, Any),
        (s.T, Any),
        (Optional[s.Plain], s.Plain | None),  # noqa: UP045 - the old spelling is the subject
    ],
    ids=str,
)
def test_what_only_decorates_a_type_is_dropped(type_: Any, plain: Any) -> None:
    assert resolve_type(type_reference(type_)) == plain


def test_local_class_cannot_be_described() -> None:
    class Local(msgspec.Struct):
        pass

    for type_ in (Local, list[Local], Local | None, "int", 5, lambda: 1, Literal[1.5]):
        assert type_reference(type_) is None


class Trap:
    def __class_getitem__(cls, item: Any) -> Any:
        raise AssertionError("code of the class ran")


@pytest.mark.parametrize(
    "reference",
    [
        None,
        5,
        "",
        ":",
        "os",
        "os:system",
        "builtins:eval",
        "builtins:int.__add__",
        "builtins:int.__class__",
        "this:d",
        "codec_shapes:Nope",
        [],
        [[]],
        ["any", "x"],
        ["none", "x"],
        ["nothing"],
        ["union"],
        ["union", "os:system"],
        ["literal"],
        ["literal", 1.5],
        ["literal", ["member", "builtins:int", "real"]],
        ["literal", ["member", "codec_shapes:Colour", "NOPE"]],
        ["literal", ["member"]],
        ["generic", "builtins:list"],
        ["generic", "builtins:list", "builtins:int"],
        ["generic", "builtins:list", ["os:system"]],
        ["generic", "builtins:list", [["..."]]],
        ["generic", "codec_shapes:Plain", ["builtins:int"]],
        ["generic", "test_codec_typeref:Trap", ["builtins:int"]],
        ["generic", ["any"], ["builtins:int"]],
        ["union", *["builtins:int"] * 1000],
        {"$ref": "x"},
        b"builtins:int",
    ],
    ids=str,
)
def test_reference_that_makes_no_type_is_unknown(reference: Any) -> None:
    before = set(sys.modules)

    assert resolve_type(reference) is None
    assert set(sys.modules) == before


def test_reference_without_an_end_is_unknown() -> None:
    reference: Any = "builtins:int"
    for _ in range(5000):
        reference = ["generic", "builtins:list", [reference]]

    assert resolve_type(reference) is None

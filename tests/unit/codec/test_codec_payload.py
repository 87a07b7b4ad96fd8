from __future__ import annotations

import ast
import inspect
from collections import UserDict
from datetime import datetime, time, timedelta, timezone
from typing import Any
from uuid import UUID

import bson
import codec_shapes as s
import pydantic
import pytest
from codec_examples import ID, NOW, ROUND_TRIPS

from streamline.codec import CODEC_OPTIONS, decode, encode
from streamline.errors import PayloadTooLarge, ValidationError

LIMIT = 1_000_000


def enc(value: Any) -> Any:
    return encode(value, what="the input", limit=LIMIT)


def dec(encoded: Any, type_: Any) -> Any:
    return decode(encoded, type_, what="the input")


def stored(encoded: Any) -> Any:
    return bson.decode(bson.encode({"v": encoded}), CODEC_OPTIONS)["v"]


def same(left: Any, right: Any) -> bool:
    """Equal in value and type, all the way down; NaN equals NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


@pytest.mark.parametrize(("value", "type_"), ROUND_TRIPS)
def test_annotated_value_comes_back_equal_in_value_and_type(value: Any, type_: Any) -> None:
    encoded = enc(value)

    back = dec(encoded, type_)

    assert same(back, value)
    assert same(stored(encoded), encoded)
    assert same(dec(stored(encoded), type_), value)
    assert same(enc(back), encoded)


def test_unannotated_value_comes_back_as_builtins() -> None:
    encoded = enc({"at": (NOW, {1}), 2: s.Plain("a", 1)})

    for nothing in (Any, inspect.Parameter.empty, object):
        assert dec(encoded, nothing) == {
            "at": ["2026-02-28T12:30:01.123456", [1]],
            "2": {"id": "a", "total": 1, "tags": []},
        }


def test_encoded_value_is_no_alias_of_the_argument() -> None:
    inner: dict[str, Any] = {"a": [1]}
    encoded = enc([inner])
    inner["a"].append(2)

    assert encoded == [{"a": [1]}]


@pytest.mark.parametrize(
    "type_", [Any, list[Any], list[dict[str, Any]], list[s.Box[Any]], list[s.Page[Any]]]
)
def test_decoded_value_is_no_alias_of_what_was_stored(type_: Any) -> None:
    encoded: list[Any] = [{"item": [1], "items": [[1]]}]
    back = dec(encoded, type_)
    first = back[0]
    held = first["item"] if isinstance(first, dict) else getattr(first, "item", None)
    (first.items[0] if isinstance(first, s.Page) else held).append(2)

    assert encoded == [{"item": [1], "items": [[1]]}]


def test_set_is_stored_in_an_order_that_is_the_same_everywhere() -> None:
    assert enc({"b", "c", "a"}) == ["a", "b", "c"]
    assert enc({"b", 2}) == ["b", 2]


def test_mapping_that_is_no_dict_is_stored_as_one() -> None:
    assert enc(UserDict(a=1)) == {"a": 1}


def cyclic() -> Any:
    loop: list[Any] = [1]
    loop.append({"again": loop})
    return loop


class Broken:
    pass


class BrokenMapping(UserDict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("gone")


def secret() -> Any:
    class Login(pydantic.BaseModel):
        password: pydantic.SecretStr

    return Login(password="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (2**63, "beyond 64 bits"),
        ([-(2**63) - 1], "beyond 64 bits"),
        (cyclic(), "refers to itself"),
        ({"a": [1, Broken()]}, r"Broken can't be stored - at `\$\.a\[1\]`"),
        (s.Tree(1, [s.Tree(1j)]), r"complex can't be stored - at `\$\.children\[0\]\.value`"),
        ({"a\0b": 1}, "NUL"),
        ("\ud800", "isn't Unicode"),
        ({"\ud800": 1}, "isn't Unicode"),
        ({1: 1, "1": 2}, "the same as text"),
        ({ID: 1, str(ID): 2}, "the same as text"),
        ({(1, 2): 1}, "key of type tuple"),
        ({None: 1}, "key of type NoneType"),
        ({True: 1}, "key of type bool"),
        (int, "type can't be stored"),
        (lambda: 1, "function can't be stored"),
        (iter([]), "list_iterator can't be stored"),
        (BrokenMapping(a=1), "RuntimeError while reading it: gone"),
        (secret(), r"secret.*\$\.password"),
        (time(1, tzinfo=timezone(timedelta(seconds=1))), "offset has seconds"),
    ],
)
def test_value_that_cannot_be_stored_is_refused_by_name(value: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=rf"(?s)Can't store the input: .*{reason}"):
        enc(value)


def test_nesting_as_deep_as_mongodb_allows_is_stored() -> None:
    value: Any = 1
    for _ in range(90):
        value = [value]
    assert dec(enc(value), Any) == value
    with pytest.raises(ValidationError, match="deeper than 90 levels"):
        enc([value, [value]])


def test_fault_in_a_cycle_is_named_by_its_first_steps() -> None:
    with pytest.raises(ValidationError, match=r"at `\$\[1\]\.again\[1\].{20,150}\.\.\.`$"):
        enc(cyclic())


def test_datetime_out_of_range_in_utc_is_refused_by_name() -> None:
    early = datetime.min.replace(tzinfo=timezone(timedelta(seconds=30)))
    with pytest.raises(ValidationError, match="out of range"):
        enc(early)


def test_too_large_value_is_refused_with_both_sizes() -> None:
    with pytest.raises(PayloadTooLarge, match=r"the result .* 2,0\d\d bytes and 1,000 are"):
        encode("x" * 2000, what="the result of step 'charge'", limit=1000)


@pytest.mark.parametrize(
    ("encoded", "type_", "reason"),
    [
        ("x", int, "as int: Expected `int`, got `str`"),
        ({"id": "a", "total": "x"}, s.Plain, r"as Plain: .*\$\.total"),
        ([{"pets": [{"name": 1}]}], list[s.Kennel], r"as list\[Kennel\]: .*\$\[0\]\.pets\[0\]"),
        ([{"x": 1}], list[s.User], r"as list\[User\]: (?s:.*)name"),
        ({"name": "x", "tricks": []}, s.Dog | s.Wolf, "could be Dog as well as Wolf"),
        ({"nope": 1}, s.Left | s.Right, "none of the members fits: Left: .*; Right: "),
        (1, complex, "complex can't be rebuilt"),
        (1, "int", "never resolved"),
        (["red"], set[list[int]], "unhashable|Expected"),
        (3.5, s.Rate, "Invalid value 3.5 for Rate"),
        ({"a": 1}, dict[int, s.Cat | s.Dog], r"\$\.a"),
        ([1], tuple[s.Cat | s.Dog, int], "length 2"),
        ({"first_name": "x"}, s.Camel, "firstName"),
        ([], s.Row, "length"),
    ],
)
def test_value_that_does_not_fit_is_refused_by_name(encoded: Any, type_: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=f"Can't read the input .*{reason}"):
        dec(encoded, type_)


def test_annotation_that_names_nothing_is_refused() -> None:
    class Odd(pydantic.BaseModel):
        pass

    Odd.__annotations__ = {}
    namespace: dict[str, Any] = {}
    exec(
        compile(
            ast.parse("import dataclasses\n@dataclasses.dataclass\nclass Bad:\n    x: 'Nowhere'"),
            "<test>",
            "exec",
        ),
        namespace,
    )
    with pytest.raises(ValidationError, match="Nowhere"):
        dec({"x": 1}, namespace["Bad"])


def test_union_does_not_depend_on_the_order_of_its_members() -> None:
    for type_ in (str | UUID, UUID | str):
        assert dec(str(ID), type_) == ID


def test_class_of_which_the_union_has_a_subclass_is_told_apart() -> None:
    class Base(s.Left):
        pass

    class Derived(s.Left):
        more: int = 0

    back = dec(enc(Derived(1, 2)), s.Left | Derived)
    assert type(back) is Derived
    assert type(dec(enc(s.Left(1)), s.Left | Derived)) is s.Left

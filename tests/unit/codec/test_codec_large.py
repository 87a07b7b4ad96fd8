"""Large payloads: when they are one, and that nothing that users pass looks like a reference."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson.binary import Binary
from bson.dbref import DBRef
from bson.objectid import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from streamline.codec import (
    CODEC_OPTIONS,
    DOCUMENT_LIMIT,
    LargePayload,
    Limits,
    PayloadRef,
    decode,
    encode,
    kept,
    lift,
    native_of,
    without_content,
)
from streamline.codec.large import Dropped
from streamline.errors import PayloadTooLarge, ValidationError

NOW = datetime(2026, 2, 28, 12, 30, 1, tzinfo=UTC)
ID = ObjectId()


def read_back(encoded: Any) -> Any:
    return bson.decode(bson.encode({"v": encoded}), CODEC_OPTIONS)["v"]


# Whatever may come near a reference: its keys, its types, and what BSON has types of its own for.
_KEYS = st.sampled_from(["payload", "size", "$oid", "v", "sealed"]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3
)
_LEAVES = (
    st.builds(ObjectId)
    | st.integers(0, 2**40)
    | st.builds(lambda: PayloadRef(ObjectId(), 5))
    | st.builds(lambda data: Binary(data, 128), st.binary(max_size=3))
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_KEYS, inner, max_size=3)
        | st.fixed_dictionaries({"payload": inner, "size": inner})
    ),
    max_leaves=6,
)


def parts(value: Any) -> list[Any]:
    """Return a value and everything in it."""
    inside = value.values() if isinstance(value, dict) else value if type(value) is list else ()
    return [value, *(part for each in inside for part in parts(each))]


@given(_VALUES)
def test_nothing_that_can_be_passed_is_taken_for_a_reference(value: Any) -> None:
    encoded = encode(value, what="it", limit=10**6)
    for stored in (encoded, read_back(encoded)):
        assert all(lift(part) is part for part in parts(stored))
        assert not any(isinstance(part, ObjectId) for part in parts(stored))


@pytest.mark.parametrize(
    "value",
    [PayloadRef(ID, 5), {"payload": ID, "size": 5}, DBRef("payload", ID), ID],
)
def test_the_nearest_to_a_reference_is_none(value: Any) -> None:
    try:
        encoded = encode(value, what="it", limit=10**6)
    except ValidationError:
        return  # such a value can't be passed at all
    assert lift(read_back(encoded)) == encoded
    assert not isinstance(lift(read_back(encoded)), PayloadRef)


def test_a_stored_reference_is_lifted() -> None:
    ref = PayloadRef.new(NOW, 2**33)
    stored = read_back({"payload": ref.payload, "size": ref.size})
    assert lift(stored) == ref
    assert type(lift(stored).size) is int
    assert ref.made_at == NOW
    assert PayloadRef.new(NOW, 1) != PayloadRef.new(NOW, 1)


@pytest.mark.parametrize("value", ["x" * 2000, ["x"] * 900, {"a": b"\0" * 1001}])
def test_a_value_beyond_the_inline_limit_is_a_large_payload(value: Any) -> None:
    large = encode(value, what="it", limit=10**6, inline=1000)
    assert isinstance(large, LargePayload)
    assert large.native() == value
    assert large.native() is not large.native()
    assert decode(large, type(value), what="it") == value
    assert native_of(large) == value
    assert "bytes" in repr(large)
    assert len(repr(large)) < 100


def test_a_value_up_to_the_inline_limit_is_itself() -> None:
    text = "x" * 985
    assert len(bson.encode({"v": text})) == 998
    assert encode(text, what="it", limit=10**6, inline=998) == text
    assert isinstance(encode(text, what="it", limit=10**6, inline=997), LargePayload)


def test_the_payload_limit_holds_for_large_payloads() -> None:
    with pytest.raises(PayloadTooLarge, match=r"2,0\d\d bytes and 1,500 are allowed"):
        encode("x" * 2000, what="it", limit=1500, inline=1000)


def test_content_goes_once_it_is_stored() -> None:
    large = LargePayload(b"x")
    assert without_content(large) is large
    ref = PayloadRef(ID, 1)
    assert without_content(LargePayload(b"x", ref)) == ref
    assert without_content("small") == "small"


def test_only_the_largest_payloads_are_not_kept_in_memory() -> None:
    small = LargePayload(b"x" * DOCUMENT_LIMIT)
    assert kept(small) is small
    assert kept(LargePayload(b"x" * (DOCUMENT_LIMIT + 1))) == Dropped(DOCUMENT_LIMIT + 1)
    assert kept("text") == "text"


def test_limits_have_an_order() -> None:
    assert Limits().payload > 100_000_000
    assert Limits().inline == 256 * 1024
    assert Limits().document == DOCUMENT_LIMIT
    assert Limits(payload=1000).document == 1000

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import bson
import codec_shapes as s
from hypothesis import example, given
from hypothesis import strategies as st

from streamline.codec import CODEC_OPTIONS, decode, encode

_INTS = st.integers(-(2**63), 2**63 - 1)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_SCALARS = st.none() | st.booleans() | _INTS | st.floats() | _TEXT | st.binary()
_NATIVES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner), max_leaves=20
)
_OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timedelta(minutes=minutes))
_CASES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (datetime, st.datetimes()),
    (datetime, st.datetimes(timezones=st.timezones())),
    (date, st.dates()),
    (time, st.times()),
    (timedelta, st.timedeltas()),
    (Decimal, st.decimals(allow_nan=False)),
    (UUID, st.uuids()),
    (set[int], st.sets(_INTS)),
    (frozenset[date], st.frozensets(st.dates())),
    (tuple[int, str, bytes], st.tuples(_INTS, _TEXT, st.binary())),
    (dict[int, float], st.dictionaries(_INTS, st.floats(allow_nan=False))),
    (dict[float, int], st.dictionaries(st.floats(allow_nan=False), _INTS)),
    (dict[datetime, UUID], st.dictionaries(st.datetimes(), st.uuids())),
    (UUID | None | list[UUID], st.none() | st.uuids() | st.lists(st.uuids())),
    (list[s.Cat | s.Dog], st.lists(st.builds(s.Cat) | st.builds(s.Dog))),
    (s.Plain, st.builds(s.Plain, _TEXT, _INTS, st.lists(_TEXT))),
    (s.Car, st.builds(s.Car, _INTS, _TEXT)),
]


def _same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, float) and math.isnan(left):
        return math.isnan(right)
    return bool(left == right)


def _comparable(value: Any) -> Any:
    """Return an instant for an aware datetime.

    Python calls datetimes of two zones unequal where the hour is repeated (PEP 495), even if they
    are the same instant; what is stored has an offset, not a zone.
    """
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    return value


def _through_bson(encoded: Any) -> Any:
    return bson.decode(bson.encode({"v": encoded}), CODEC_OPTIONS)["v"]


@given(_NATIVES)
def test_any_native_value_is_stored_and_read_unchanged(value: Any) -> None:
    encoded = encode(value, what="it", limit=10**9)

    assert _same(encoded, value)
    assert _same(_through_bson(encoded), encoded)
    assert _same(decode(encoded, Any, what="it"), value)


@example((datetime, datetime(1970, 10, 25, 2, tzinfo=ZoneInfo("America/Winnipeg"))))
@given(st.one_of([values.map(lambda v, t=type_: (t, v)) for type_, values in _CASES]))  # type: ignore[misc]
def test_any_annotated_value_comes_back_equal(case: tuple[Any, Any]) -> None:
    type_, value = case
    encoded = _through_bson(encode(value, what="it", limit=10**9))

    back = decode(encoded, type_, what="it")

    assert _comparable(back) == _comparable(value)
    assert type(back) is type(value)

"""Readers of unions that msgspec refuses, because nothing in the stored form tells the members.

The members are tried, the likeliest first: what was parsed from text before text, the class whose
fields fit best before others. Two equally likely members that both fit, with different results,
are an error and never a guess: a wrong class would show only much later.
"""

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from itertools import groupby
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args, get_origin

from streamline.codec import models
from streamline.codec.mismatch import Mismatch, Reader, Resolve, describe
from streamline.codec.objects import fields_of, tag_of

_Rank = tuple[int, int, int]
_FIRST, _EXACT, _PARSED, _LOOSE, _UNFIT, _LAST = range(6)
_ARRAYS = (list, tuple, set, frozenset)


def union_reader(members: tuple[Any, ...], resolve: Resolve) -> Reader:
    """Return a reader that tries the members in the order of `_rank`."""

    def read(value: Any) -> Any:
        ranked = sorted(((_rank(member, value), member) for member in members), key=lambda x: x[0])
        faults: list[str] = []
        for _, group in groupby(ranked, key=lambda pair: pair[0]):
            hits = _hits([member for _, member in group], value, resolve, faults)
            if hits:
                return _only(hits)
        raise Mismatch(f"none of the members fits: {'; '.join(faults)}")

    return read


def _hits(members: list[Any], value: Any, resolve: Resolve, faults: list[str]) -> list[Any]:
    hits = []
    for member in members:
        try:
            hits.append((member, resolve(member)(value)))
        except Mismatch as error:
            faults.append(f"{describe(member)}: {error}")
    return hits


def _only(hits: list[tuple[Any, Any]]) -> Any:
    (first, found), *others = hits
    for other, also in others:
        if type(also) is not type(found) or also != found:
            raise Mismatch(
                f"it could be {describe(first)} as well as {describe(other)}; make the two "
                "distinguishable: `class X(Struct, tag=True)`, or a `Literal` field that differs"
            )
    return found


def _rank(member: Any, value: Any) -> _Rank:
    while get_origin(member) is Annotated or hasattr(member, "__supertype__"):
        member = getattr(member, "__supertype__", None) or get_args(member)[0]
    cls = get_origin(member) or member
    if member is Any or cls is object:
        return (_LAST, 0, 0)
    if cls is Literal or (isinstance(cls, type) and issubclass(cls, Enum)):
        return (_FIRST, 0, 0)
    if isinstance(value, dict):
        return _rank_of_object(member, cls, value)
    if isinstance(value, list):
        return (_EXACT, _ARRAYS.index(cls) if cls in _ARRAYS else len(_ARRAYS), 0)
    if isinstance(value, str):
        return _rank_of_text(cls)
    if isinstance(value, int | float) and cls in (float, Decimal) and type(value) is not cls:
        return (_LOOSE, 1 if cls is Decimal else 0, 0)  # Decimals are stored as text
    return (_EXACT if cls is type(value) else _PARSED, 0, 0)


def _rank_of_text(cls: Any) -> _Rank:
    if cls is str:
        return (_LOOSE, 1, 0)
    if isinstance(cls, type) and issubclass(cls, PurePath | str):
        return (_LOOSE, 0, 0)  # any text is one
    if cls in (bytes, bytearray, memoryview):
        return (_UNFIT, 0, 0)  # bytes are stored as bytes
    return (_PARSED, 0, 0)


def _rank_of_object(member: Any, cls: Any, value: dict[str, Any]) -> _Rank:
    """Prefer the class that leaves the fewest keys unread, then the one with fewest missing."""
    if models.is_model(cls):
        known = models.known_keys(cls)
        wanted = set(models.field_names(cls))
    else:
        fields = fields_of(member)
        if fields is None:
            return (_LOOSE, 0, 0)
        wanted = {field.key for field in fields}
        if tag := tag_of(member):
            wanted.add(tag[0])
        known = wanted
    unread, missing = len(value.keys() - known), len(wanted - value.keys())
    return (_UNFIT if unread else _PARSED, unread, missing)

"""Exceptions of every kind."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

import attrs

INITS: list[str] = []


class Declined(Exception):
    def __init__(self, card: str, *, amount: int) -> None:
        super().__init__(f"card {card} declined")
        INITS.append(card)
        self.card = card
        self.amount = amount


class Slotted(Exception):
    __slots__ = ("_hidden", "reason")

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self._hidden = 1


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    when: datetime
    why: tuple[int, ...]


@attrs.define(auto_exc=True)
class Attrs(Exception):
    code: int
    detail: str = "x"


class Unpicky(Exception):
    """Its message needs what can't be carried."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.connection = connection

    def __str__(self) -> str:
        return f"lost {self.connection.name}"


class BrokenStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class BrokenDict(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no dict")


class OwnNew(Exception):
    def __new__(cls, *args: Any) -> OwnNew:
        INITS.append("new")
        return super().__new__(cls, *args)


class Outer:
    class Inner(Exception):
        pass


class Many(ExceptionGroup[Exception]):
    def derive(self, excs: Any) -> Many:
        return Many(self.message, excs)


class Fatal(BaseException):
    pass


NOT_A_CLASS = ValueError("x")

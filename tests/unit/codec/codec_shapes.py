"""Classes of every kind that a payload may be made of."""

from __future__ import annotations

import dataclasses
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum
from pathlib import Path
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Required,
    TypedDict,
    TypeVar,
)
from uuid import UUID

import attrs
import msgspec
import pydantic
import pydantic.dataclasses

T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    S = 1
    L = 2


class Mood(StrEnum):
    GOOD = "good"


class Rate(Enum):
    LOW = 1.5
    HIGH = 2.5


class Corner(Enum):
    ORIGIN = (0, 0)
    FAR = (9, 9)


class Access(Flag):
    READ = 1
    WRITE = 2


class Bits(IntFlag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Options(TypedDict, total=False):
    name: str
    when: datetime


class Plain(msgspec.Struct):
    id: str
    total: int
    tags: list[str] = []


class Camel(msgspec.Struct, rename="camel", tag="cml", omit_defaults=True):
    first_name: str
    last_name: str = "x"
    others: list[str] = []
    maybe: int | msgspec.UnsetType = msgspec.UNSET


class Row(msgspec.Struct, array_like=True, frozen=True):
    a: int
    b: tuple[int, ...]


class Tree(msgspec.Struct):
    value: Any
    children: list[Tree] = []


@dataclasses.dataclass
class Order:
    id: UUID
    at: datetime
    price: Decimal
    _secret: int = 4
    counted: int = dataclasses.field(default=3, init=False)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    colours: frozenset[Colour]
    pair: tuple[int, str]


@dataclasses.dataclass
class Box(Generic[T]):
    item: T
    next: Box[T] | None = None


@dataclasses.dataclass
class Seeded:
    value: int
    seed: dataclasses.InitVar[int] = 0


@attrs.define
class Car:
    wheels: int
    _plate: str = "none"
    started: bool = attrs.field(default=False, init=False)


@dataclasses.dataclass
class Cat:
    name: str
    lives: int = 9


@dataclasses.dataclass
class Dog:
    name: str
    tricks: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Wolf:
    name: str
    tricks: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Kennel:
    pets: list[Cat | Dog]
    when: date | datetime | None = None
    next: Kennel | Cat | None = None


class Left(msgspec.Struct):
    left: int


class Right(msgspec.Struct):
    right: int


@dataclasses.dataclass
class Fork(Generic[T]):
    side: Left | Right
    item: T


class User(pydantic.BaseModel):
    name: str
    born: datetime
    balance: Decimal = Decimal("1.10")
    blob: bytes = b"\xff\x00"
    home: Path = Path("/home")
    friends: list[User] = []
    pet: Cat | Dog | None = None
    key: int = pydantic.Field(default=1, alias="theKey")
    hidden: int = pydantic.Field(default=1, exclude=True)

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def shout(self) -> str:
        return self.name.upper()


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)
    at: datetime
    colour: Colour


class Loose(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    url: pydantic.HttpUrl


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]
    more: Any = None


class Ids(pydantic.RootModel[list[UUID]]):
    pass


@dataclasses.dataclass
class Holder:
    user: User
    users: dict[str, User | None]
    either: Strict | Loose | int


class Label(str):
    pass


class Paths(msgspec.Struct):
    sizes: dict[Path, int]


@pydantic.dataclasses.dataclass
class Checked:
    at: datetime
    size: int = 1


class ByKindA(pydantic.BaseModel):
    kind: Literal["a"] = "a"
    x: int


class ByKindB(pydantic.BaseModel):
    kind: Literal["b"] = "b"
    x: int


class Pair(NamedTuple):
    first: ByKindA | ByKindB
    second: int = 3


class Sparse(TypedDict):
    a: Required[ByKindA | ByKindB]
    b: NotRequired[Left | ByKindA]


@attrs.frozen
class Cold:
    value: ByKindA | ByKindB
    _hidden: int = 1


class Odd(Enum):
    NOTHING = None
    BYTES = b"z"

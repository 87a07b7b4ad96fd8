"""How a body ended."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from streamline.model import Input


class Returned(msgspec.Struct, frozen=True):
    """It returned a value."""

    value: Any


class Failed(msgspec.Struct, frozen=True):
    """It raised; or, if `stuck`, it stands where nothing can wake it."""

    error: BaseException
    stuck: bool = False


class Cancelled(msgspec.Struct, frozen=True):
    """It let a cancel through."""


class Continued(msgspec.Struct, frozen=True):
    """It called `continue_as_new`; the run begins anew with these arguments."""

    given: Input


Outcome: TypeAlias = Returned | Failed | Cancelled | Continued

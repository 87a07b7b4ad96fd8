"""Durations as people write them: `"30s"`, `"1h30m"`, seconds, or a timedelta."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import TypeAlias

Duration: TypeAlias = timedelta | float | str
"""A timedelta, a number of seconds, or text: `"250ms"`, `"30s"`, `"1h30m"`, `"2d"`, `"1w"`."""

_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*")


def to_timedelta(duration: Duration) -> timedelta:
    """Return a duration as a timedelta.

    Raises:
        ValueError: It is negative, not finite, or text of another form.
    """
    if isinstance(duration, timedelta):
        value = duration
    elif isinstance(duration, str):
        value = _parse(duration)
    elif math.isfinite(duration):
        value = timedelta(seconds=duration)
    else:
        raise ValueError(f"a duration must be finite, not {duration!r}")
    if value < timedelta():
        raise ValueError(f"a duration can't be negative: {duration!r}")
    return value


def to_seconds(duration: Duration) -> float:
    """Return a duration as seconds; raises what `to_timedelta` raises."""
    return to_timedelta(duration).total_seconds()


def _parse(text: str) -> timedelta:
    stripped = text.strip()
    parts = list(_PART.finditer(stripped))
    if not parts or "".join(part.group(0) for part in parts) != stripped:
        raise ValueError(f"not a duration: {text!r}; write for example '250ms', '30s' or '1h30m'")
    return sum((float(part.group(1)) * _UNITS[part.group(2)] for part in parts), timedelta())

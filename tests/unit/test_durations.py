"""Durations as people write them."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamline.durations import to_seconds, to_timedelta


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("1.5h", 5400),
        ("1h30m", 5400),
        (" 1h 30m ", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("0s", 0),
        (0, 0),
        (90, 90),
        (0.5, 0.5),
        (timedelta(hours=1), 3600),
    ],
)
def test_what_is_accepted(text, seconds):
    assert to_seconds(text) == seconds
    assert to_timedelta(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "soon", "30", "s", "1h30", "-1s", "1y", "1h;", "1 h x", "1,5h", "h1", "1h\x00"],
)
def test_other_text_is_refused_and_shown(text):
    with pytest.raises(ValueError, match="not a duration") as caught:
        to_timedelta(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("value", [-1, -0.001, timedelta(seconds=-1)])
def test_negative_durations_are_refused(value):
    with pytest.raises(ValueError, match="negative"):
        to_timedelta(value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), float("-inf")])
def test_endless_durations_are_refused(value):
    with pytest.raises(ValueError, match="finite"):
        to_timedelta(value)


@given(hours=st.integers(0, 500), minutes=st.integers(0, 59), seconds=st.integers(0, 59))
def test_parts_add_up(hours, minutes, seconds):
    text = f"{hours}h{minutes}m{seconds}s"
    assert to_timedelta(text) == timedelta(hours=hours, minutes=minutes, seconds=seconds)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert to_timedelta(text) >= timedelta()

"""Ids and names."""

from __future__ import annotations

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamline import ValidationError
from streamline.ids import check_name, new_id


def test_ids_are_uuids_of_version_7():
    made = uuid.UUID(new_id())
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert abs((made.int >> 80) / 1000 - time.time()) < 5


def test_ids_sort_by_creation_and_differ():
    first = new_id()
    time.sleep(0.002)
    later = [new_id() for _ in range(1000)]
    assert len(set(later)) == 1000
    assert all(first < other for other in later)


@given(st.from_regex(r"[A-Za-z0-9_.:<>-]{1,100}", fullmatch=True))
def test_acceptable_names_come_back(name):
    assert check_name(name, what="a step") == name


@pytest.mark.parametrize("name", ["", "x" * 101, "a b", "a/b", "é", "a\n", "$a", "a\x00"])
def test_unacceptable_names_are_refused_and_shown(name):
    with pytest.raises(ValidationError, match="a step can't be named") as caught:
        check_name(name, what="a step")
    assert repr(name) in str(caught.value)

"""Whatever a body does, in whatever order things happen: a replay does the same."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replay_player import Player, Recording, assert_replays, describe, played, replay, whole_commits
from replay_programs import CHANNELS, Program, flow_of, programs

SETTINGS = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**16)
cancels = st.none() | st.integers(0, 6)
MESSAGES = [(channel, number) for number in range(3) for channel in CHANNELS]


def _play(program: Program, seed: int, cancel_after: int | None, **options: Any) -> Recording:
    player = Player(
        flow_of(program, **options), seed=seed, cancel_after=cancel_after, messages=MESSAGES
    )
    return player.play()


def _drop() -> None:
    while played:
        played.pop().evict()


@SETTINGS
@given(programs, seeds, cancels)
def test_a_replay_asks_for_the_same_and_ends_the_same(
    program: Program, seed: int, cancel_after: int | None
) -> None:
    recording = _play(program, seed, cancel_after)
    gc.collect(0)
    assert_replays(recording)
    assert len(recording.ids) == len(set(recording.ids))
    _drop()


@SETTINGS
@given(programs, seeds, cancels)
def test_a_run_goes_on_alike_after_a_replay_of_any_beginning(
    program: Program, seed: int, cancel_after: int | None
) -> None:
    recording = _play(program, seed, cancel_after)
    cuts = {whole_commits(recording.journal, cut) for cut in range(len(recording.journal) + 1)}
    for upto in sorted(cuts):
        again = replay(recording, upto=upto)
        assert again.turns == recording.turns[: upto + 1]
        for entry in recording.journal[upto:]:
            again.execution.apply(entry)
        assert describe(again.execution.outcome) == describe(recording.outcome)
        assert tuple(again.execution.open) == recording.turns[-1].open
        _drop()


@SETTINGS
@given(programs, seeds, seeds, st.integers(0, 12), cancels)
def test_a_run_that_goes_on_differently_replays_too(
    program: Program, seed: int, other: int, upto: int, cancel_after: int | None
) -> None:
    recording = _play(program, seed, cancel_after)
    player = Player(recording.workflow, seed=other, messages=MESSAGES)
    assert_replays(player.resume(recording, whole_commits(recording.journal, upto)))
    _drop()


@SETTINGS
@given(programs, seeds, cancels)
def test_a_run_with_a_timeout_replays(
    program: Program, seed: int, cancel_after: int | None
) -> None:
    assert_replays(_play(program, seed, cancel_after, timeout=2))
    _drop()


@SETTINGS
@given(programs, seeds, st.integers(0, 12), cancels)
def test_dropping_a_run_anywhere_is_silent(
    program: Program,
    seed: int,
    upto: int,
    cancel_after: int | None,
) -> None:
    recording = _play(program, seed, cancel_after)
    again = replay(recording, upto=whole_commits(recording.journal, upto))
    ids = again.execution.open._counts.copy()
    again.execution.evict()
    assert again.execution.open._counts == ids
    assert again.execution.open.take_issued() == []
    _drop()


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    gc.collect()
    # What a background task raised and nobody asked for is logged by asyncio, once and live.
    assert [r for r in caplog.records if "never retrieved" not in r.getMessage()] == []


@SETTINGS
@given(programs, seeds)
def test_every_entry_answers_a_command_that_was_open(program: Program, seed: int) -> None:
    recording = _play(program, seed, None)
    commanded = set(recording.ids)
    withdrawn = {id_ for turn in recording.turns for id_ in turn.withdrawn}
    answers = [entry.id for entry in recording.journal if entry.kind.value != "patch"]
    assert set(answers) <= commanded
    assert not withdrawn & set(answers)
    assert len(answers) == len(set(answers))
    _drop()

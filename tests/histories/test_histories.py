"""The compatibility promise: journals recorded by earlier versions replay with today's code.

If one of these fails, runs that users have in flight would be paused. Mend the code; a history is
never recorded anew to make its test pass. New ones: see `record.py`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from streamline import NonDeterminism, Status
from streamline.model import EntryKind, Run
from streamline.testing import Environment, export_history, import_history, replay
from tests.histories.workflows import RECORDED, registry

FOLDER = Path(__file__).parent
HISTORIES = sorted(FOLDER.glob("*.json"))


def load(path: Path) -> Run:
    return import_history(path.read_text())


def test_every_history_is_there():
    assert {path.stem for path in HISTORIES} == set(RECORDED)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_recorded_run_replays_to_its_recorded_end(path):
    run = load(path)
    replayed = replay(registry.find(run.workflow), path.read_text())
    assert replayed.context == run.context
    assert list(replayed.awaiting) == run.awaiting
    assert (replayed.ending is None) == (run.status is Status.WAITING)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_every_prefix_of_a_recorded_run_replays(path):
    """As a run that was in flight there; what it asks for next is what was answered next."""
    run = load(path)
    for length in range(len(run.journal)):
        prefix = msgspec.structs.replace(
            run, journal=run.journal[:length], status=Status.RUNNING, output=None, error=None
        )
        replayed = replay(registry.find(run.workflow), prefix)
        answered = run.journal[length]
        asked = {*replayed.open, "cancel"}
        assert answered.id in asked or answered.kind is EntryKind.PATCH


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_worker_of_today_finishes_a_run_that_was_in_flight(path):
    """Cut in its middle and taken over; what is recorded stays as it is."""
    run = load(path)
    half = len(run.journal) // 2
    taken = {entry.message for entry in run.journal[:half]}
    inbox = [message for message in run.inbox if message.id not in taken]
    async with Environment(registry=registry) as env:
        cut = msgspec.structs.replace(
            run,
            status=Status.QUEUED,
            journal=run.journal[:half],
            inbox=inbox,
            awaiting=[],
            output=None,
            error=None,
            ended_at=None,
            worker=None,
            claim=None,
            due_at=env.clock.now(),
        )
        await env.store.create_run(cut)
        await env.settle()
        stored = await env.store.load_run(run.id)
        assert stored is not None
        assert stored.status is not Status.PAUSED, stored.error
        assert stored.journal[:half] == run.journal[:half]


def test_an_export_survives_its_json():
    for path in HISTORIES:
        run = load(path)
        assert import_history(export_history(run)) == run


def test_a_code_that_diverges_is_told():
    """K4"""
    run = load(FOLDER / "fan.json")
    entries = [msgspec.structs.replace(run.journal[0], id="charge"), *run.journal[1:]]
    with pytest.raises(NonDeterminism, match="entry 0: recorded step 'charge'"):
        replay(registry.find("fan"), msgspec.structs.replace(run, journal=entries))
    with pytest.raises(NonDeterminism, match="with the code of today"):
        replay(registry.find("fan"), msgspec.structs.replace(run, output=["other"]))

"""`Rewinder`: lets ended runs go on from an earlier point of their journals."""

from __future__ import annotations

from collections.abc import Sequence

from streamline.errors import InvalidState, StepNotFound
from streamline.model import Entry, EntryKind, Run, Status
from streamline.store import RunStore

_STEP = EntryKind.STEP
_STEPS = frozenset({EntryKind.STEP, EntryKind.ATTEMPT})
_CHILDREN = frozenset({EntryKind.CHILD, EntryKind.OUTCOME})


class Rewinder:
    """Cuts journals.

    Args:
        store: Where the runs are.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store

    async def rewind(self, run: Run, step_id: str) -> None:
        """Let a run go on from before a step's first entry; raises what `RunHandle.rewind` does."""
        if run.status not in (Status.DONE, Status.FAILED):
            raise InvalidState(
                f"run {run.id!r} is {run.status.value}; only a run that is done or has failed can "
                "be rewound",
                run_id=run.id,
            )
        journal = await self._journal(run)
        first = next((i for i, e in enumerate(journal) if _is_step(e, step_id)), None)
        if first is None:
            recorded = dict.fromkeys(e.id for e in journal if e.kind in (_STEP, *_CHILDREN))
            raise StepNotFound(
                f"run {run.id!r} has no record of step {step_id!r}; it has "
                f"{', '.join(map(repr, recorded)) or 'none'}",
                run_id=run.id,
                step=step_id,
            )
        await self._cut(run, journal, journal[:first])

    async def retry(self, run: Run) -> None:
        """Let a failed run go on from before its failure; raises what `RunHandle.retry` does."""
        if run.status is not Status.FAILED:
            raise InvalidState(
                f"run {run.id!r} is {run.status.value}, not failed; there is nothing to retry",
                run_id=run.id,
            )
        journal = await self._journal(run)
        step_id = run.error.step if run.error is not None else None
        ends = (i for i, e in enumerate(journal) if e.id == step_id and _is_end(e))
        kept = journal[: next(ends, len(journal))]
        # What resolved nothing can go from among the rest: attempts of the failed step, and that a
        # child was begun, so that another is. The body knows of it only where it has a handle.
        await self._cut(run, journal, [e for e in kept if not _is_redone(e, step_id)])

    async def _given_up(self, journal: Sequence[Entry]) -> set[str]:
        """Return the ids of the calls that ended with the body, so that they are made anew.

        Their runs were cancelled, or are about to be. But one that came to an end of its own first
        has a result, or a failure, that is good for the body that goes on.
        """
        told = {entry.id for entry in journal if entry.kind is EntryKind.OUTCOME}
        calls = {e.id: e.value["run"] for e in journal if _is_call(e) and e.id not in told}
        if not calls:
            return set()
        ended = await self._store.load_ended(list(calls.values()))
        good = {run.id for run in ended if run.status is not Status.CANCELLED}
        return {id_ for id_, run_id in calls.items() if run_id not in good}

    async def _journal(self, run: Run) -> list[Entry]:
        return [*await self._store.load_archive(run.id, run.journal_base), *run.journal]

    async def _cut(self, run: Run, journal: Sequence[Entry], kept: Sequence[Entry]) -> None:
        given_up = await self._given_up(journal)
        kept = [entry for entry in kept if not (_is_call(entry) and entry.id in given_up)]
        if not await self._store.rewind_run(run, kept):
            raise InvalidState(
                f"run {run.id!r} was changed by somebody else meanwhile; look at it again",
                run_id=run.id,
            )


def _is_call(entry: Entry) -> bool:
    """Whether it tells that a child was begun of which the body knows no more than its end."""
    began = entry.kind is EntryKind.CHILD and entry.error is None
    return began and "detached" not in entry.value


def _is_step(entry: Entry, step_id: str | None) -> bool:
    return entry.kind in _STEPS | _CHILDREN and entry.id == step_id


def _is_end(entry: Entry) -> bool:
    never_began = entry.kind is EntryKind.CHILD and entry.error is not None
    return never_began or entry.kind in (_STEP, EntryKind.OUTCOME)


def _is_redone(entry: Entry, step_id: str | None) -> bool:
    if entry.kind is EntryKind.CHILD and "detached" in (entry.value or ()):
        return False
    return _is_step(entry, step_id)

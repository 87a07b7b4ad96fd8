"""The errors for code that no longer fits the journal of a run."""

from __future__ import annotations

from streamline.errors import NonDeterminism, ValidationError
from streamline.model import Entry, EntryKind, Run
from streamline.replay.commands import Command


def diverged(
    run: Run, entry: Entry, position: int, command: Command | None, asked: tuple[str, ...]
) -> NonDeterminism:
    """Return the error for a body that didn't ask for what is recorded.

    Args:
        run: The run.
        entry: What is recorded.
        position: The index of the entry in the journal.
        command: The open command of the entry's id, of another kind, if there is one.
        asked: The ids of all open commands, or words for there being none.
    """
    if command is None:
        code_asked = ", ".join(repr(name) for name in asked[:5])
    else:
        asked, code_asked = (entry.id,), f"a {_named(command)} of that name"
    return NonDeterminism(
        f"Run {run.id!r} diverged at entry {position}: recorded {entry.kind.value} "
        f"{entry.id!r}, the code asked for {code_asked} (it began under Python {run.python}). "
        "Restore the old order, or guard the change with patched(); then unpause the run.",
        run_id=run.id,
        step=entry.id,
        position=position,
        recorded=entry.id,
        asked=asked,
    )


def _named(command: Command) -> str:
    kind = command.kind
    return "child" if kind is EntryKind.OUTCOME else kind.value


def retyped(run: Run, entry: Entry, position: int, error: ValidationError) -> NonDeterminism:
    """Return the error for a recorded result that its step's annotation no longer takes."""
    return NonDeterminism(
        f"Run {run.id!r}, entry {position}: {error}. Restore the old type; then unpause the run.",
        run_id=run.id,
        step=entry.id,
        position=position,
        recorded=entry.id,
    )

"""The errors for code that no longer fits the journal of a run."""

from __future__ import annotations

from streamline.errors import NonDeterminism, ValidationError
from streamline.model import Entry, EntryKind, Run
from streamline.replay.commands import Command, kind_of


def answered(
    run: Run, entry: Entry, position: int, command: Command | None, asked: tuple[str, ...]
) -> Command:
    """Return the command that an entry answers.

    Args:
        run: The run.
        entry: What is recorded.
        position: The index of the entry in the journal.
        command: The open command of the entry's id, if there is one.
        asked: The ids of all open commands, or words for there being none.

    Raises:
        NonDeterminism: The body didn't ask for this, or for something else of this name.
    """
    kind = EntryKind.STEP if entry.kind is EntryKind.ATTEMPT else entry.kind
    if command is not None and kind_of(command) is kind:
        return command
    if command is None:
        code_asked = ", ".join(repr(name) for name in asked[:5])
    else:
        asked, code_asked = (entry.id,), f"a {_named(command)} of that name"
    raise NonDeterminism(
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
    kind = kind_of(command)
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

"""Record histories: `python -m tests.histories.record [name ...]`; without names, what is missing.

A history that exists is only replaced when it is named. Don't name one to make its test pass: the
test failed because runs that users have in flight would fail as well.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from streamline import Status
from streamline.testing import Environment, export_history
from tests.histories.workflows import RECORDED, registry

FOLDER = Path(__file__).parent


async def record(name: str) -> None:
    """Run the script of one history and write what came of it."""
    _, script = RECORDED[name]
    async with Environment(registry=registry) as env:
        handle = await script(env)
        if not name.endswith("-waiting"):
            await handle.wait(60)
        run = await env.store.load_run(handle.id)
        assert run is not None
        assert run.status.ended or run.status is Status.WAITING
        archived = await env.store.load_archive(run.id, run.journal_base)
    path = FOLDER / f"{name}.json"
    # Tracebacks hold where the checkout lies; a history is the same everywhere.
    root = f"{Path(__file__).parents[2]}/"
    path.write_text(export_history(run, archived).replace(root, "") + "\n")
    sys.stdout.write(f"{path.name}: {run.status.value}, {len(run.journal)} entries\n")


def main() -> None:
    """Record the named histories, or those that are missing."""
    names = sys.argv[1:] or [name for name in RECORDED if not (FOLDER / f"{name}.json").exists()]
    for name in names:
        asyncio.run(record(name))


if __name__ == "__main__":
    main()

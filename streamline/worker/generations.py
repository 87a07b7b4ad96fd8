"""How a run goes on as its next generation: what the commit says that empties its journal."""

from __future__ import annotations

from typing import Any

import msgspec

from streamline.definitions import Workflow
from streamline.model import Commit, Continuation, Input, MessageKind, Past
from streamline.worker.identity import PYTHON
from streamline.worker.session import Session


def continued(
    commit: Commit, session: Session, given: Input, workflow: Workflow[..., Any]
) -> Commit:
    """Return the commit by which a run begins anew.

    Args:
        commit: What it would be if the run just went on, its waits being closed: so a resume that
            was accepted refuses it, for that must reach the body that waits. All else may come at
            any time and stays for the next generation, a cancel too.
        session: Its working state, whose body has ended.
        given: The encoded arguments of the next generation.
        workflow: The code that takes it over.
    """
    run = session.run
    # For a slot of the body that has ended: a slot of the next one may have the same id.
    resumes = session.inbox.all_of(MessageKind.RESUME)
    return msgspec.structs.replace(
        commit,
        entries=(),
        archive=(),
        consumed=(*commit.consumed, *(message.id for message in resumes)),
        awaiting=(),
        attempts=(),
        continuation=Continuation(
            input=msgspec.structs.replace(given, context=dict(session.body.context)),
            code=workflow.code,
            version=workflow.version,
            python=PYTHON,
            generation=run.generation + 1,
            past=Past(
                input=run.first_input,
                at=session.now(),
                rev=commit.rev + 1,
                taken=list(session.message_ids),
            ),
        ),
    )

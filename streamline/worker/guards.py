"""Which messages, come in unseen, refuse a commit: those that it would pass over, and no others.

What any message refuses never lands where they come in faster than commits.
"""

from __future__ import annotations

from typing import Any

from streamline.model import Status
from streamline.worker.session import Session


def guards(session: Session, status: Status, *, moved: bool) -> dict[str, Any]:
    """Return the fields of a `Commit` that name what is known of the inbox.

    Args:
        session: What the commit is made of.
        status: To which it brings the run.
        moved: Whether it writes the open slots anew.
    """
    if status is Status.RUNNING and not moved:
        return {}  # what happened is written whatever else comes in
    # Whoever follows a run must be told of its end.
    followers = len(session.inbox.followers) if status.ended else None
    if session.forced:
        return {"followers": followers}
    decides = status in (Status.DONE, Status.FAILED)
    if status is Status.WAITING or (decides and session.unwritten):
        # A message might have come first, for all that is known.
        return {"inbox_seq": session.inbox.seq, "followers": followers}
    return {
        "followers": followers,
        # None that a resume closed may open again, or close without it. What comes for other
        # slots stays in the inbox until it is taken.
        "open_slots": len(session.awaiting) if moved and session.has_waits else None,
        # Nothing wakes a paused run that was cancelled before. And an end whose causes are all
        # recorded is changed by nothing else.
        "uncancelled": decides or status is Status.PAUSED,
    }

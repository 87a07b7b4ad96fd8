"""`Overheard`: what was lately heard of the inboxes of runs that this worker doesn't drive."""

from __future__ import annotations

LIMIT = 1000
"""Of how many runs it is kept."""


class Overheard:
    """Remembers, for runs that may be on their way here, which messages are known to have come in.

    A run that was claimed is found nowhere until the reply is read. A message that comes in between
    is in neither of the two, so whoever takes the run in asks here.
    """

    def __init__(self) -> None:
        self._heard: dict[str, tuple[int, int]] = {}

    def note(self, run_id: str, inbox_seq: int, *, claims: int) -> None:
        """Take in a run's `inbox_seq`, and how many claims the worker has made so far."""
        before, then = self._heard.pop(run_id, (0, claims))  # the latest stands last
        # Notices come late and out of order; those from before another claim are in its reply.
        self._heard[run_id] = max(inbox_seq, before) if then == claims else inbox_seq, claims
        if len(self._heard) > LIMIT:
            del self._heard[next(iter(self._heard))]

    def since(self, claim: int, run_id: str) -> int:
        """Return the `inbox_seq` that was heard since the worker's claim of this number, or 0."""
        inbox_seq, claims = self._heard.pop(run_id, (0, 0))
        return inbox_seq if claims >= claim else 0

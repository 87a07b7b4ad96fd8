"""What the engine asks of a store, cut at the verbs of the domain.

Each rule below has a test in `tests/conformance`, and every store passes that suite. Rules for all
verbs: data given in and handed out is never shared with what is stored; a verb that returned has
made its change durable against the loss of any minority of servers; a verb survives failovers and
lost replies by trying again, and applies its change once; when the server doesn't answer for
longer than the store's timeout it raises `ServerUnavailable`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from streamline.clock import Clock
from streamline.codec import Failure, PayloadRef
from streamline.errors import ServerUnavailable
from streamline.model import (
    Claim,
    Commit,
    CommitResult,
    Dispatch,
    Entry,
    Message,
    Notice,
    PostResult,
    Run,
)


class Renewal(msgspec.Struct, frozen=True, kw_only=True):
    """What a renewal found: the runs whose claim is lost, and the `inbox_seq` of the others."""

    lost: frozenset[str]
    inbox_seq: dict[str, int]


class Outbox(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has still to tell others, and when any worker may see to that."""

    run_id: str
    due_at: datetime
    dispatches: list[Dispatch]


REFER_WITHIN = timedelta(minutes=10)
"""How old a reference may be when it is first stored without a fence."""
ORPHANED_AFTER = timedelta(hours=1)
"""How old a payload without a fence must be before it can count as one that nobody refers to."""
GONE_AFTER = timedelta(minutes=2)
"""How long after a run's expiry its payloads are looked at: by then MongoDB has deleted it."""
LOOK_AGAIN_AFTER = timedelta(days=30)
"""When a payload that is referred to is looked at again, if nothing gives a reason before."""


def is_late(value: object, now: datetime) -> bool:
    """Whether a payload is a new reference that is too old to be stored."""
    return isinstance(value, PayloadRef) and now > value.made_at + REFER_WITHIN


def check_in_time(value: object, run_id: str, now: datetime) -> None:
    """Refuse to store a new reference that is too old.

    Raises:
        ServerUnavailable: It is.
    """
    if is_late(value, now):
        raise ServerUnavailable(
            f"Storing something for run {run_id!r} took longer than {REFER_WITHIN} after its large "
            "payload was written; it was not stored. Try again."
        )


class RunStore(ABC):
    """Keeps runs; knows nothing of workflows, bodies or replay.

    A payload kept outside of its run's document is written before anything refers to it, so a crash
    leaves an orphan, never a dangling reference. `sweep_payloads` deletes orphans, and must not
    take a payload for one whose reference is on its way, however slow. Two rules see to that:
    what a worker wrote under a claim's `fence` can't be referred to once the run has another fence
    or isn't running; any other reference (in a new run, in a message) is stored within
    `REFER_WITHIN` of its making, by the server's clock, or not at all: then `create_run`,
    `replace_run` and `post` raise `ServerUnavailable`.
    """

    clock: Clock
    """Time as the server sees it; valid after `open`."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, set the clock, and make sure of the indexes.

        Raises:
            ServerUnavailable: Nothing answered within the timeout. No secret of the address shows.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of what `open` took; a second call does nothing."""

    # -- starting ---------------------------------------------------------------------------------

    @abstractmethod
    async def create_run(self, run: Run) -> tuple[Run, bool]:
        """Insert a run, claimed already where it says so.

        Rules: of several creations of one id, concurrent or not, exactly one inserts; the others
        get the stored run and False. A creation whose reply was lost and that is tried again
        counts as the one that inserted: told by its `claim` if it has one (and by that alone, else
        two creators might both run it), without a claim by `created_at` and input.

        Returns:
            The stored run (without its journal when it existed before), and whether it is this one.

        Raises:
            PayloadTooLarge: The document would be too large.
            DataCorruption: The run of this id that exists already can't be read.
        """

    @abstractmethod
    async def replace_run(self, run: Run, *, rev: int, fence: int) -> bool:
        """Put a new run in the place of an ended one of the same id, archived journal and all.

        Rules: only if it is ended, still has `rev` and `fence`, and nothing in its outbox; the
        caller gives the new run `fence + 1` or more, so that no old claim fits it.
        """

    # -- reading ----------------------------------------------------------------------------------

    @abstractmethod
    async def load_run(
        self, run_id: str, *, journal: bool = True, inbox: bool = True
    ) -> Run | None:
        """Return a run, with or without the part of its journal that is in the document (and its
        `past`), and its inbox: a journal may be large, and an inbox may hold thousands of messages.

        Raises:
            DataCorruption: The document can't be read as a run.
        """

    @abstractmethod
    async def load_archive(self, run_id: str, until: int) -> list[Entry]:
        """Return the journal entries with index below `until` that were moved out, in order.

        Raises:
            DataCorruption: Some are missing.
        """

    @abstractmethod
    async def load_ended(self, run_ids: Sequence[str]) -> list[Run]:
        """Return those of the runs that have ended, without journal, inbox and past, in one query.

        Rules: only durable ends, which no failover undoes: callers act on them. One that can't be
        read is returned as failed with `DATA_CORRUPTION`.
        """

    @abstractmethod
    async def next_due(self, codes: Sequence[str]) -> datetime | None:
        """Return the earliest `due_at` among the runs of these codes, past ones too."""

    # -- claims -----------------------------------------------------------------------------------

    @abstractmethod
    async def claim_due(self, claim: Claim, codes: Sequence[str], limit: int) -> list[Run]:
        """Claim up to `limit` runs of these codes that are due, the longest due first.

        Rules: a run is claimed only if `due_at` has come; so never an ended or a paused one, nor
        one whose lease is live. One that waits may be claimed up to `claim.ahead` earlier: then its
        worker waits for the very moment. Each claim sets `status` to running, `worker`, `claim`,
        `fence + 1`, `due_at` to the end of the lease by the server's clock, and `started_at` if it
        is not set. A run found running (its lease ran out) has `recoveries + 1`. If that makes it a
        suspect (`SUSPECT`), it is not claimed but queued, `fence + 1`, due after a random time that
        doubles with each recovery: so runs that died together come back one by one, and one that
        kills its process takes the others down no more. Of concurrent claims of one run exactly one
        gets it. Claims of several workers spread over what is due.
        A document that can't be read as a run is set aside: it is marked failed with
        `DATA_CORRUPTION`, has no `due_at`, and the other runs are claimed all the same. What names
        a parent or followers in it is read as far as it can be: they are told (see `terminate`).

        Returns:
            The runs as they are after the claim.
        """

    @abstractmethod
    async def claim_run(self, claim: Claim, run_id: str) -> Run | None:
        """Claim this run if it is due; the rules of `claim_due` hold. None if it can't be had."""

    @abstractmethod
    def renew(self, worker: str, held: Mapping[str, int], lease: float) -> Renewal:
        """Extend the leases of all runs that a worker holds, given as run id -> fence.

        Rules: blocking, and called from a thread of its own, so that it works while the event loop
        is blocked. A run is extended only if it is running under that worker and fence; else it is
        reported as lost. `rev` stays.
        """

    @abstractmethod
    async def release(self, run_id: str, fence: int, *, faulty: bool = False) -> bool:
        """Hand a claim back: queued, due now, held by nobody. False if the claim was lost.

        Rule: not a recovery; the next claim leaves `recoveries` as they are. But one that is
        handed back as `faulty`, since it could not be driven, counts: `recoveries + 1`.
        """

    @abstractmethod
    async def claim_holders(self, beginning: str, *, besides: str) -> list[str]:
        """Return the ids of the workers that hold a claim at present.

        Args:
            beginning: What the ids begin with that are asked for.
            besides: One that is left out: what the asking worker holds itself costs nothing.
        """

    @abstractmethod
    async def expire_claims(self, worker: str) -> int:
        """Make the runs that a dead worker holds due now; returns how many were not due yet.

        Rules: they count as recoveries when they are claimed. Until then they stay running under
        that worker, without `claim` (which tells watchers that this is no renewal).
        """

    # -- advancing --------------------------------------------------------------------------------

    @abstractmethod
    async def commit(self, commit: Commit) -> CommitResult:
        """Apply a commit whole, or not at all.

        Rules: refused as LOST unless the run is running under `fence` and has `rev`; refused as
        INBOX_MOVED if `inbox_seq` is given and another, if not as many slots are open as
        `open_slots` says, if the message `pause` doesn't lie in the inbox, with `uncancelled` if a
        cancel that isn't consumed does, or if not as many follow as `followers` says. A commit that
        landed but whose reply was lost lands when it is tried again. `entries` are appended in
        order. `consumed` messages
        leave the inbox; others stay. With `archive`, those entries are first made durable outside
        the document (the same archive written twice does no harm), then removed from it in the same
        update. `journal_base` is given with an `expire_at` too, so that the archive expires with
        the run. Any other status than running lets go of the claim (`worker`, `claim`) and
        empties `attempts`; an ended one also empties `awaiting` and removes `due_at`. A commit with
        `progress` sets `recoveries` to 0. Every commit sets `updated_at` by the server's clock.
        `outbox` is appended to the run's, and `outbox_due` set with it.

        With a `continuation` the run begins anew in the same update, under the same claim: what
        the continuation holds replaces the run's fields of these names, its journal is emptied
        (`journal_base` is 0), as are slots, attempts and `recoveries`, `epoch + 1`, and
        `fence + 1`, so that nothing fits any more that was on its way for the generation before.
        What was archived of it is removed afterwards; what a crash leaves of that is never read,
        though it has the indexes of new entries, and expires with the run. Entries and an archive
        are not given.

        Raises:
            PayloadTooLarge: The document would be too large; nothing was written.
        """

    @abstractmethod
    async def heartbeat(self, run_id: str, fence: int, step: str, details: object) -> bool:
        """Record details in the running attempt of a step. False if the claim was lost.

        Rule: an attempt that isn't recorded (yet) is passed over.
        """

    # -- messages and control ---------------------------------------------------------------------

    @abstractmethod
    async def post(self, run_id: str, message: Message, *, slot: str | None = None) -> PostResult:
        """Put a message in a run's inbox and wake the run.

        Rules: in one update: the message is appended, `inbox_seq + 1`, and a waiting run is due
        now (a paused one only by a cancel: it becomes waiting, due now). With `slot`, that slot is
        closed in the same update, so of several posts to it one wins and the others get NO_SLOT.
        A message id that the run has or had in this generation is a DUPLICATE and changes nothing,
        also when the entry that took it was archived; so is one of `past.taken`. An inbox holds at
        most `inbox_limit` bytes of messages, but
        a cancel or a pause always has room. In return few can lie there: a cancel beside another,
        or a pause after another that no cancel follows, is PENDING and changes nothing. Of the
        results, the first that applies: NO_RUN, DUPLICATE, ENDED, NO_SLOT, PENDING, FULL.
        """

    @abstractmethod
    async def post_to_parked(
        self, parked: Run, message: Message, claim: Claim, *, slot: str | None = None
    ) -> Run | None:
        """Put a message in the inbox of a run that waits, and claim the run, in one update.

        Args:
            parked: The run as its commit to `waiting` left it, as far as the caller knows.
            message: Archived entries are not searched for its id: if there are any, it must be new.
            claim: For whom.
            slot: A slot to be closed.

        Rules: those of `post` and `claim_run`. Applied only if the run is waiting and still has the
        `rev` and `fence` of `parked`, the slot is open, there is room, and no message of this id is
        in the document; else nothing is written.

        Returns:
            The run after the claim, without its journal; None if nothing was written.
        """

    @abstractmethod
    async def cancel_unstarted(self, run_id: str, error: Failure) -> bool:
        """End a draft or queued run that was never claimed (`fence` 0) as cancelled, at once.

        Rules: its parent and followers are to be told, as by `terminate`.
        """

    @abstractmethod
    async def terminate(self, run_id: str, error: Failure) -> bool:
        """End a run as cancelled without asking it; its worker's claim is lost (`fence + 1`).

        Rules: the same update puts into its outbox an outcome for its parent and each follower, and
        an abandonment for the child of each open slot; with something there it has no `expire_at`,
        which `settle_outbox` sets.

        Returns:
            False if it had ended, or there is none.
        """

    @abstractmethod
    async def unpause(self, run_id: str) -> bool:
        """Make a paused run queued and due now, its `error` removed; or take back a pause.

        Rules: True if it was paused, or a pause lay in its inbox (which is taken out in either
        case, and then `inbox_seq` is one more). Else False, and nothing changes.
        """

    @abstractmethod
    async def rewind_run(self, run: Run, kept: Sequence[Entry]) -> bool:
        """Let a run that is done or has failed go on from an earlier point of its journal.

        Args:
            run: The run as it was read.
            kept: The first entries of its whole journal; the rest is dropped.

        Rules: only if it still has `run`'s `rev` and `fence`, and is done or failed. Then it is
        queued and due now with the kept entries as its journal, `fence + 1`, `rev + 1`, and without
        output, error, slots, attempts, recoveries and dates of end and expiry. Its inbox and its
        outbox stay, and its `epoch` is one more.
        """

    # -- telling other runs -----------------------------------------------------------------------

    @abstractmethod
    async def follow(self, run_id: str, follower: str) -> Run | None:
        """Let another run be told of this one's end; returns it without journal and inbox.

        Rules: an ended run is only returned. Else `follower` is among those told when this returns,
        once; and no commit that ends the run may overlook it (see `Commit.followers`).
        """

    @abstractmethod
    async def load_outboxes(self, codes: Sequence[str], limit: int) -> list[Outbox]:
        """Return outboxes of runs of these codes that aren't empty, the earliest due first.

        Rules: those that aren't due yet are among them. What can't be read of one is left out.
        """

    @abstractmethod
    async def settle_outbox(
        self, run_id: str, sent: Sequence[Dispatch], again_at: datetime
    ) -> None:
        """Take what was delivered out of an outbox; what is left is due again at `again_at`.

        Rules: what came in meanwhile stays. Once it is empty, there is no `outbox_due`, and an
        ended run that is to expire gets the `expire_at` that it lacked, archived journal and all.
        """

    # -- payloads kept outside --------------------------------------------------------------------

    @abstractmethod
    async def put_payload(
        self, run_id: str, ref: PayloadRef, place: str, data: bytes, *, fence: int | None = None
    ) -> None:
        """Make a payload durable, so that it can be referred to.

        Rules: put again it is there once. Of any size up to 2 GB.

        Args:
            run_id: The run that it belongs to, which may not exist yet.
            ref: A new reference.
            place: Where in the run it belongs: `Entry.place` and the like.
            data: A BSON document.
            fence: The claim under whose commit it will be referred to; None if it is another verb.
        """

    @abstractmethod
    async def load_payload(self, run_id: str, ref: PayloadRef, place: str) -> bytes:
        """Return what was put.

        Raises:
            DataCorruption: It is missing, or isn't what was put there.
        """

    @abstractmethod
    async def discard_payload(self, run_id: str, ref: PayloadRef) -> None:
        """Delete a payload that is known not to be referred to."""

    @abstractmethod
    async def sweep_payloads(self) -> int:
        """Delete payloads whose run doesn't refer to them; returns how many.

        Rules: none that is referred to, by the document or its archived journal, nor one whose
        reference may be on its way. This alone deletes payloads: no date does, which another
        run that has the id by then might outlive. A payload is looked at `ORPHANED_AFTER` its
        making, `GONE_AFTER` its run's expiry, at once when its run is replaced, rewound or
        continued, and every `LOOK_AGAIN_AFTER`, should the process have died that was to bring
        it up.
        """

    # -- notices ----------------------------------------------------------------------------------

    @abstractmethod
    def watch(self, *, besides: str | None = None) -> AsyncIterator[Notice]:
        """Yield a notice for each change, of any process, that may concern workers or waiters.

        That is: a run became due now, got a message, or ended; with `fence` if the same change
        raised it, so that a holder learns at once that it lost the run. First, and whenever changes
        may have been missed, comes a notice without a `run_id`. Ends at once where the store can't
        tell (then callers poll); raises `ServerUnavailable` when the connection fails for good.

        Args:
            besides: The id of a worker that tells of the ends it brings about itself: they are left
                out.
        """

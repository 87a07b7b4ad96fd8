"""`Launcher`: makes runs durable, and decides what a start with an existing id means."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec

from streamline.clock import to_milliseconds
from streamline.codec import Limits, encode
from streamline.definitions import Workflow
from streamline.durations import to_seconds, to_timedelta
from streamline.errors import InvalidState, RunConflict, ValidationError
from streamline.handles import OnExisting, StartOptions
from streamline.ids import check_id, new_id
from streamline.model import Claim, Input, Parent, Run, Status
from streamline.store import RunStore, Spill
from streamline.worker import Worker
from streamline.worker.identity import PYTHON

_MAX_INT = 2**63 - 1


class Launcher:
    """Starts runs on a store, and in the local worker where it has room.

    Args:
        store: Where the runs go.
        worker: The local worker; None for a client.
        limits: How large payloads may be.
    """

    def __init__(self, store: RunStore, worker: Worker | None, limits: Limits) -> None:
        self._store = store
        self._worker = worker
        self._limits = limits
        self._spill = Spill(store)

    async def launch(
        self,
        flow: Workflow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
    ) -> str:
        """Make a run durable; returns its id.

        Raises:
            ValidationError: The arguments or options are not acceptable.
            PayloadTooLarge: The arguments are too large.
            RunConflict: The id belongs to a run of another workflow or input.
        """
        run = self._build(flow, args, kwargs, options)
        await self._start(run, flow, options)
        return run.id

    async def launch_child(
        self, flow: Workflow[..., Any], given: Input, options: StartOptions, parent: Parent
    ) -> Run:
        """Make a child durable; the same call of the same parent gets the same run.

        Returns:
            The run. If it was there already, the parent follows it, or it has ended.

        Raises:
            RunConflict: Also if it is the parent itself.
        """
        assert options.id is not None
        if options.id == parent.run:
            raise RunConflict(f"run {parent.run!r} can't be its own child", run_id=parent.run)
        while True:
            run = msgspec.structs.replace(self._run(flow, given, options), parent=parent)
            stored = await self._start(run, flow, options)
            if stored.parent == parent or stored.status.ended:
                return stored
            # Else it is gone since: it has ended and expired, and its id is free again.
            if (followed := await self._store.follow(run.id, parent.run)) is not None:
                return followed

    async def _start(self, run: Run, flow: Workflow[..., Any], options: StartOptions) -> Run:
        """Make a run durable, claimed by the local worker if that has room; returns what it is."""
        # Before the claim: no lease is to run while a large input is being written.
        await self._spill.run(run)
        worker = self._worker
        if worker is None or run.status is not Status.QUEUED or not worker.reserve(flow):
            return await self._create(run, options)
        claim = worker.scheduler.new_claim()
        try:
            return await self._create(_claimed(run, claim, self._store.clock.now()), options)
        except BaseException:
            # It may have had its effect: then the run is ours, and nobody else may drive it.
            worker.fetch(run.id, claim.id)
            raise
        finally:
            worker.free_place()

    async def _create(self, run: Run, options: StartOptions) -> Run:
        spilled = run
        if run.input.payload is not None:
            spilled = await self._spill.run(run)
            run = msgspec.structs.replace(run, spilled=True)
        stored, created = await self._store.create_run(spilled)
        # Two creations in one millisecond look like one that was tried again.
        if created and (stored.workflow, stored.parent) == (run.workflow, run.parent):
            self._hand_over(run)
            return run
        try:
            meant, landed = await self._resolve(run, spilled, stored, options)
        except RunConflict:
            await self._spill.discard(run.input.payload, run.id)
            raise
        if not landed:
            await self._spill.discard(run.input.payload, run.id)
        return meant

    # -- building ---------------------------------------------------------------------------------

    def _build(
        self,
        flow: Workflow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
    ) -> Run:
        run_id = new_id() if options.id is None else check_id(options.id, what="a run's id")
        what = f"the arguments of run {run_id!r} of workflow {flow.name!r}"
        limits = self._limits
        given = flow.signature.encode_input(
            args, kwargs, what=what, limit=limits.payload, inline=limits.inline
        )
        return self._run(flow, given, msgspec.structs.replace(options, id=run_id))

    def _run(self, flow: Workflow[..., Any], given: Input, options: StartOptions) -> Run:
        run_id = options.id or ""
        _check_options(options, run_id)
        now = self._store.clock.now()
        due_at = _due_at(options, now)
        retention = options.expire_after if options.expire_after is not None else flow.retention
        context = self._encoded(options.context, f"the context of run {run_id!r}")
        return Run(
            id=run_id,
            workflow=flow.name,
            version=flow.version,
            code=flow.code,
            status=Status.QUEUED if due_at <= now else Status.DRAFT,
            input=msgspec.structs.replace(given, context=context),
            python=PYTHON,
            created_at=now,
            updated_at=now,
            due_at=due_at,
            context=context,
            meta=self._encoded(options.meta, f"the meta of run {run_id!r}"),
            tags=list(options.tags or ()),
            tenant=options.tenant,
            priority=options.priority,
            expire_after=None if retention is None else to_seconds(retention),
        )

    def _encoded(self, given: Any, what: str) -> dict[str, Any]:
        if not given:
            return {}
        encoded: dict[str, Any] = encode(dict(given), what=what, limit=self._limits.document)
        return encoded

    def _hand_over(self, run: Run) -> None:
        if self._worker is None:
            return
        if run.status is Status.RUNNING:
            self._worker.adopt(run)
        else:
            self._worker.scheduler.notice_due(run.due_at)

    # -- existing ids -----------------------------------------------------------------------------

    async def _resolve(
        self, run: Run, spilled: Run, stored: Run, options: StartOptions
    ) -> tuple[Run, bool]:
        """Find out what a start with an existing id means, and do it.

        Args:
            run: The new run, its input at hand.
            spilled: The same as it is to be stored.
            stored: The one that has its id.
            options: How it is started.

        Returns:
            The run meant, and whether it is the new one, which was stored.
        """
        while True:
            if run.parent is not None and (stored.parent, stored.workflow) == _call_of(run):
                return stored, False  # started by this very call, before its worker died
            if stored.workflow != run.workflow:
                raise RunConflict(
                    f"run {run.id!r} is of workflow {stored.workflow!r}, not {run.workflow!r}; "
                    "choose another id",
                    run_id=run.id,
                )
            if stored.status.ended and options.on_existing == "fail":
                raise RunConflict(
                    f"run {run.id!r} has ended as {stored.status.value} and was started with "
                    "on_existing='fail'",
                    run_id=run.id,
                )
            if not (stored.status.ended and options.on_existing == "restart"):
                await self._check_input(run, stored)
                return stored, False
            fence = stored.fence + max(1, run.fence)
            # Later than the old one by any clock: ends of the two are told apart by it (`outbox`).
            created_at = max(run.created_at, stored.created_at + timedelta(milliseconds=1))
            later = {"fence": fence, "epoch": stored.epoch + 1, "created_at": created_at}
            replacement = msgspec.structs.replace(spilled, **later)
            if stored.outbox:
                # What it has to tell would be lost with it.
                await self._deliver(stored)
            if await self._store.replace_run(replacement, rev=stored.rev, fence=stored.fence):
                meant = msgspec.structs.replace(run, **later)
                self._hand_over(meant)
                return meant, True
            # Somebody else restarted it in between: that run is the one meant now.
            stored, created = await self._store.create_run(spilled)
            if created:
                self._hand_over(run)
                return run, True

    async def _check_input(self, run: Run, stored: Run) -> None:
        given = await self._spill.input(stored.first_input, run.id)
        if given.arguments() != run.input.arguments():
            raise RunConflict(
                f"run {run.id!r} exists with another input; choose another id, or start it with "
                "the same arguments",
                run_id=run.id,
            )

    async def _deliver(self, stored: Run) -> None:
        if self._worker is not None and not await self._worker.courier.deliver(stored.id):
            raise InvalidState(
                f"run {stored.id!r} has ended and still has to tell other runs, which can't take "
                "it at present; restart it later",
                run_id=stored.id,
            )


def _call_of(run: Run) -> tuple[Parent | None, str]:
    return run.parent, run.workflow


def _claimed(run: Run, claim: Claim, now: datetime) -> Run:
    """Return a new run claimed from the start: the claim goes with the write that creates it."""
    return msgspec.structs.replace(
        run,
        status=Status.RUNNING,
        worker=claim.worker,
        claim=claim.id,
        fence=run.fence + 1,
        started_at=run.created_at,
        due_at=now + timedelta(seconds=claim.lease),
    )


class _AsGiven(msgspec.Struct):
    """What is stored as it is given: of other types, the document could not be read again."""

    tags: list[str]
    tenant: str | None
    priority: Annotated[int, msgspec.Meta(ge=-_MAX_INT, le=_MAX_INT)]
    on_existing: OnExisting


def _check_options(options: StartOptions, run_id: str) -> None:
    """Check the types of options, which may come from a request.

    Raises:
        ValidationError: One of them isn't of its type.
    """
    given = {name: getattr(options, name) for name in _AsGiven.__struct_fields__}
    try:
        checked = msgspec.convert(given | {"tags": given["tags"] or ()}, _AsGiven)
        "".join((*checked.tags, checked.tenant or "")).encode()
        for name in ("context", "meta"):
            if not isinstance(getattr(options, name) or {}, Mapping):
                raise msgspec.ValidationError(f"{name} is not a mapping")
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise ValidationError(
            f"the options of run {run_id!r} are not acceptable: {error}"
        ) from error


def _due_at(options: StartOptions, now: datetime) -> datetime:
    if options.start_at is not None and options.delay is not None:
        raise ValidationError("give start_at or delay, not both")
    if options.delay is not None:
        return to_milliseconds(now + to_timedelta(options.delay))
    if options.start_at is None:
        return now
    if options.start_at.tzinfo is None:
        raise ValidationError(f"start_at needs an aware datetime, not {options.start_at!r}")
    return max(now, to_milliseconds(options.start_at))

"""What a chaos run left behind, read once: the history, the documents, the logs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from pymongo.asynchronous.database import AsyncDatabase

from tests.acceptance.checker import Evidence, gather_evidence
from tests.chaos.payloads import with_payloads
from tests.chaos.trail import read_trails

Document = dict[str, Any]


class Call(msgspec.Struct, frozen=True):
    """A call of a client. `ended` and `outcome` are None where the client died before the end."""

    op: str
    run: str
    began: float
    facts: dict[str, Any]
    ended: float | None = None
    outcome: str | None = None
    told: str = ""
    value: Any = None

    @property
    def ok(self) -> bool:
        """Whether it was acknowledged."""
        return self.outcome == "ok"

    @property
    def may_have_worked(self) -> bool:
        """Whether it was, or may have been, carried out."""
        return self.outcome in ("ok", "unknown", None)


class Findings:
    """All that a chaos run left behind.

    Args:
        evidence: What the database says; its effects are those of the trails.
        calls: What clients did.
        events: What else the trails tell.
        logs: Name of a process -> what it logged.
        missing: What runs refer to and isn't there, as text.
    """

    def __init__(
        self,
        evidence: Evidence,
        calls: list[Call],
        events: list[dict[str, Any]],
        logs: dict[str, str],
        missing: list[str],
    ) -> None:
        self.evidence = evidence
        self.missing = missing
        self.calls = calls
        self.events = events
        self.logs = logs
        self.executions = evidence.executions
        self._times: dict[str, dict[str, float]] = {"start": {}, "end": {}}
        for row in evidence.effects:
            self._times[row["kind"]][row["_id"]] = row["at"]
        self._by_run: dict[str, list[Call]] = defaultdict(list)
        for call in calls:
            self._by_run[call.run].append(call)

    def of(self, run: str, *ops: str) -> list[Call]:
        """The calls for a run that were, or may have been, carried out."""
        return [c for c in self._by_run.get(run, ()) if c.op in ops and c.may_have_worked]

    def acknowledged(self, *ops: str) -> Iterator[Call]:
        """The calls that were."""
        return (call for call in self.calls if call.op in ops and call.ok)

    def runs(self, *flows_: str) -> Iterator[Document]:
        """The runs of some workflows; of all if none is named."""
        for run in self.evidence.runs.values():
            if not flows_ or run["workflow"] in flows_:
                yield run

    def root(self, run: str) -> str:
        """The id of the run that clients started, of one that was called in a run."""
        parent = self.evidence.runs.get(run, {}).get("parent")
        return run if parent is None else self.root(parent["run"])

    def journal(self, run: str) -> list[Document]:
        """All entries of a run."""
        return self.evidence.journals.get(run, [])

    def rewritten(self, run: str) -> bool:
        """Whether parts of its journal may have been dropped on demand."""
        return bool(self.of(run, "restart", "rewind", "retry"))

    def started(self, effect: str) -> float | None:
        """When an execution started."""
        return self._times["start"].get(effect)

    def ended(self, effect: str) -> float | None:
        """When an execution ended."""
        return self._times["end"].get(effect)


async def gather(database: AsyncDatabase[Document], directory: Path) -> Findings:
    """Read everything."""
    evidence, missing = await with_payloads(database, await gather_evidence(database))
    effects = read_trails(directory, "effects-*.jsonl")
    events = read_trails(directory, "history-*.jsonl")
    logs = _logs(directory)
    others = [event for event in events if event["event"] not in ("call", "return")]
    evidence = msgspec.structs.replace(evidence, effects=effects)
    return Findings(evidence, list(_calls(events)), others, logs, missing)


def _logs(directory: Path) -> dict[str, str]:
    return {path.stem: path.read_text(errors="replace") for path in directory.glob("*.log")}


def _calls(events: list[dict[str, Any]]) -> Iterator[Call]:
    returns = {event["call"]: event for event in events if event["event"] == "return"}
    for event in events:
        if event["event"] != "call":
            continue
        known = ("at", "pid", "event", "call", "op", "run")
        facts = {name: value for name, value in event.items() if name not in known}
        call = Call(op=event["op"], run=event["run"], began=event["at"], facts=facts)
        back = returns.get(event["call"])
        if back is not None:
            call = msgspec.structs.replace(
                call,
                ended=back["at"],
                outcome=back["outcome"],
                told=back["told"],
                value=back["value"],
            )
        yield call

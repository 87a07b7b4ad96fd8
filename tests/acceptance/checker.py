"""What must hold of a database after any amount of havoc, as functions that raise AssertionError.

They read plain documents (`workflow_runs`, `workflow_journal`, and the `effects` that the steps of
`apps.flows` leave), so that they say nothing by way of the engine's own code.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from pymongo.asynchronous.database import AsyncDatabase

Document = dict[str, Any]

ENDED = ("done", "failed", "cancelled")


class Evidence(msgspec.Struct, frozen=True):
    """All that a database says about its runs."""

    runs: dict[str, Document]
    journals: dict[str, list[Document]]
    """Run id -> all entries, the archived ones first."""
    effects: list[Document]

    @property
    def executions(self) -> dict[tuple[str, str], list[Document]]:
        """(run id, step id) -> the executions of that step in the run's present generation."""
        found: dict[tuple[str, str], list[Document]] = defaultdict(list)
        for effect in self.effects:
            generation = self.runs.get(effect["run"], {}).get("generation", 1)
            if effect["kind"] == "start" and effect.get("generation", 1) == generation:
                found[effect["run"], effect["step"]].append(effect)
        return found


async def gather_evidence(database: AsyncDatabase[Document]) -> Evidence:
    """Read everything."""
    runs = {run["_id"]: run async for run in database.workflow_runs.find({})}
    parts: dict[str, list[Document]] = defaultdict(list)
    async for part in database.workflow_journal.find({}).sort("start", 1):
        parts[part["run"]].append(part)
    journals = {
        run_id: [*_archived(run, parts[run_id]), *run.get("journal", ())]
        for run_id, run in runs.items()
    }
    return Evidence(runs, journals, await database.effects.find({}).to_list())


def _archived(run: Document, parts: Iterable[Document]) -> list[Document]:
    entries: list[Document] = []
    for part in parts:
        assert part["start"] <= len(entries), f"{run['_id']}: a gap in the archived journal"
        entries.extend(part["entries"][len(entries) - part["start"] :])
    base = run.get("journal_base", 0)
    assert len(entries) >= base, f"{run['_id']}: {len(entries)} archived entries of {base}"
    return entries[:base]


def check_everything(evidence: Evidence) -> None:
    """Check what holds of any database at rest."""
    check_ended(evidence)
    check_journals(evidence)
    check_fences(evidence)
    check_executions(evidence)


def check_ended(evidence: Evidence) -> None:
    """Every run has ended, in one consistent write."""
    stuck = [run for run in evidence.runs.values() if run["status"] not in ENDED]
    assert not stuck, describe(stuck)
    for run in evidence.runs.values():
        assert "ended_at" in run, f"no ended_at: {describe([run])}"
        for field in ("due_at", "worker", "claim", "attempts", "awaiting"):
            assert not run.get(field), f"an ended run keeps {field}: {describe([run])}"
        if run["status"] != "done":
            assert run.get("error"), f"no error: {describe([run])}"


def check_journals(evidence: Evidence) -> None:
    """Each command is answered once, each message taken once, and time goes forward."""
    for run_id, entries in evidence.journals.items():
        answered = Counter(e["id"] for e in entries if e["kind"] in ("step", "timer"))
        twice = [id_ for id_, count in answered.items() if count > 1]
        assert not twice, f"{run_id}: answered twice: {twice}"
        taken = Counter(e["message"] for e in entries if "message" in e)
        twice = [id_ for id_, count in taken.items() if count > 1]
        assert not twice, f"{run_id}: messages taken twice: {twice}"
        instants = [e["at"] for e in entries]
        assert instants == sorted(instants), f"{run_id}: entries out of order: {entries}"


def check_fences(evidence: Evidence) -> None:
    """Fences never go back, and under each fence one process alone wrote."""
    for run_id, entries in evidence.journals.items():
        fences = [e["fence"] for e in entries]
        assert fences == sorted(fences), f"{run_id}: fences go back: {fences}"
        assert not fences or fences[-1] <= evidence.runs[run_id]["fence"], f"{run_id}: {fences}"
        writers: dict[int, set[int]] = defaultdict(set)
        for entry in entries:
            if isinstance(entry.get("value"), dict) and "pid" in entry["value"]:
                writers[entry["fence"]].add(entry["value"]["pid"])
        shared = {fence: pids for fence, pids in writers.items() if len(pids) > 1}
        assert not shared, f"{run_id}: several processes wrote under one fence: {shared}"


def check_executions(evidence: Evidence) -> None:
    """No step ran again once its result was recorded; what is recorded did run.

    The journal names the execution that was recorded, so this needs no comparison of clocks: only
    the holder of the claim records, so none can have started after the one that was recorded.
    """
    executions = evidence.executions
    for run_id, entries in evidence.journals.items():
        for entry in entries:
            ran = executions.get((run_id, entry["id"]), [])
            value = entry.get("value")
            if entry["kind"] != "step" or not isinstance(value, dict) or "effect" not in value:
                continue
            recorded = next((e for e in ran if e["_id"] == value["effect"]), None)
            assert recorded is not None, f"{run_id}: {entry} recorded what never ran: {ran}"
            late = [e for e in ran if e["at"] > recorded["at"]]
            assert not late, (
                f"{run_id}: step {entry['id']} ran again after it was recorded: {entry}, {ran}"
            )
            keys = {e["idempotency_key"] for e in ran}
            assert len(keys) == 1, f"{run_id}: step {entry['id']} had several keys: {keys}"


def check_messages(evidence: Evidence, sent: Mapping[str, Iterable[str]]) -> None:
    """Each message that was acknowledged is in the journal, or lies in the inbox; once.

    Args:
        sent: Run id -> ids of the messages.
    """
    for run_id, ids in sent.items():
        taken = Counter(e["message"] for e in evidence.journals[run_id] if "message" in e)
        taken.update(message["id"] for message in evidence.runs[run_id].get("inbox", ()))
        wrong = {id_: taken[id_] for id_ in ids if taken[id_] != 1}
        assert not wrong, f"{run_id}: messages not there just once: {wrong}"


def repeated_executions(evidence: Evidence) -> int:
    """How many executions there were beyond one per step and attempt."""
    counts = Counter((e["run"], e["step"], e["attempt"]) for e in evidence.effects)
    return sum(count - 1 for count in counts.values())


def describe(runs: Iterable[Document]) -> str:
    """Say what runs look like, for a message."""
    runs = list(runs)
    lines = [f"{len(runs)} runs:"]
    for run in runs[:5]:
        journal = run.get("journal", ())
        tail = [(e["id"], e["kind"], e["fence"], str(e["at"])) for e in journal][-3:]
        shown = {
            name: value for name, value in run.items() if name not in ("journal", "input", "python")
        }
        lines.append(f"  {shown}\n    last of {len(journal)} entries: {tail}")
    return "\n".join(lines)

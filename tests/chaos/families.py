"""What must hold of parents and children, and of what is kept outside, after a chaos run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.chaos.findings import Document, Findings

PARENTS = ("family", "bulky", "dynasty", "heir")
UNHEARD = "endless"
"""The workflow of the children whose ends nobody waits for."""


def told_once(findings: Findings) -> Iterator[str]:
    """Each parent was told of the end of each child once, and was told the truth."""
    for run in findings.runs(*PARENTS):
        run_id, entries = run["_id"], findings.journal(run["_id"])
        begun = [entry for entry in entries if entry["kind"] == "child"]
        told = [entry for entry in entries if entry["kind"] == "outcome"]
        for kind, found in (("child", begun), ("outcome", told)):
            twice = [id_ for id_, n in Counter(e["id"] for e in found).items() if n > 1]
            if twice:
                yield f"{run_id}: {kind} recorded several times: {twice}"
        for entry in begun:
            if "error" in entry:
                yield f"{run_id}: a child was not started: {entry}"
        children = {entry["id"]: entry["value"]["run"] for entry in begun if "value" in entry}
        for entry in told:
            child = findings.evidence.runs.get(children.get(entry["id"], ""))
            if child is None:
                yield f"{run_id}: was told of a child that isn't there: {entry}"
            else:
                yield from _compare(run_id, entry, child)


def _compare(run_id: str, entry: Document, child: Document) -> Iterator[str]:
    if child["status"] == "done":
        if entry.get("value") != child["output"]:
            yield f"{run_id}: was told {entry}, the child came to {child['output']}"
        return
    code = {"failed": "WORKFLOW_FAILED", "cancelled": "WORKFLOW_CANCELLED"}.get(child["status"])
    if entry.get("error", {}).get("code") != code:
        yield f"{run_id}: was told {entry}, the child is {child['status']}: {child.get('error')}"


def whole(findings: Findings) -> Iterator[str]:
    """A parent that is done called all children of its own, and heard of all that it called."""
    for run in findings.runs(*PARENTS):
        run_id = run["_id"]
        if run["status"] != "done" or findings.rewritten(run_id):
            continue
        entries = findings.journal(run_id)
        told = {entry["id"] for entry in entries if entry["kind"] == "outcome"}
        called = {
            entry["value"]["run"]: entry["id"] for entry in entries if entry["kind"] == "child"
        }
        if lost := called.keys() - findings.evidence.runs.keys():
            yield f"{run_id}: children that it called aren't there: {lost}"
        for child in _born_of(run, findings) | called.keys():
            # One that a race gave up may have been started without its parent's knowing it.
            unheard = findings.evidence.runs.get(child, {}).get("workflow") == UNHEARD
            if not unheard and called.get(child) not in told:
                yield f"{run_id}: is done without having heard of {child}"


def _born_of(run: Document, findings: Findings) -> set[str]:
    """Return the ids of the runs that a run called since it was last begun anew."""
    call = (run["_id"], run.get("epoch", 0))
    parents = {each["_id"]: each.get("parent", {}) for each in findings.runs()}
    return {id_ for id_, each in parents.items() if (each.get("run"), each.get("epoch", 0)) == call}


def outboxes(findings: Findings) -> Iterator[str]:
    """In the end nobody has anything left to tell."""
    for run in findings.runs():
        if run.get("outbox"):
            yield f"{run['_id']}: {run['status']}, and has still to tell {run['outbox']}"


def payloads(findings: Findings) -> Iterator[str]:
    """Whatever a run refers to is there."""
    yield from findings.missing

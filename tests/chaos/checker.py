"""What must hold after a chaos run, promise by promise, from the history and the documents.

Every check yields what it found wrong, as text; nothing here uses the engine. What the documents
alone tell is checked by `tests.acceptance.checker`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tests.acceptance import checker as documents
from tests.acceptance.checker import ENDED, Evidence
from tests.chaos import families, flows
from tests.chaos.findings import Call, Document, Findings

CLOCKS = 0.03
"""Seconds that clocks of one host may seem to differ: what is read here and stamped there."""
FAILING = {"brittle": "STEP_FAILED", "hopeless": "WORKFLOW_FAILED"}
"""Workflow -> the code of the error with which it may fail."""
_GRAVE = re.compile(r"Traceback|never retrieved| ERROR |was never awaited|Fatal Python")
_EXPECTED = re.compile(r"can't reach the server|the event loop has been blocked")


def check(findings: Findings) -> list[str]:
    """Return everything that is wrong."""
    return [f"{name}: {wrong}" for name, each in CHECKS.items() for wrong in each(findings)]


# -- promise 1: recorded steps don't run again -----------------------------------------------------


def documents_alone(findings: Findings) -> Iterator[str]:
    """What `tests.acceptance.checker` checks, run by run, so that one fault hides no other."""
    evidence = findings.evidence
    for run_id, run in evidence.runs.items():
        effects = [row for row in evidence.effects if row["run"] == run_id]
        if findings.of(run_id, "restart"):
            # The run before it was terminated; who held that one may learn it after a step or two.
            first = min((entry["fence"] for entry in evidence.journals[run_id]), default=0)
            effects = [row for row in effects if row["fence"] >= first]
        alone = Evidence({run_id: run}, {run_id: evidence.journals[run_id]}, effects)
        for test in (
            documents.check_ended,
            documents.check_journals,
            documents.check_fences,
            documents.check_executions,
        ):
            try:
                test(alone)
            except AssertionError as error:
                yield f"{test.__name__}: {error}"


def at_most_once(findings: Findings) -> Iterator[str]:
    """A step that may not run twice was started once at most."""
    for (run, step), ran in findings.executions.items():
        if step == "once" and len(ran) > 1:
            yield f"{run}: {step} ran {len(ran)} times: {ran}"


# -- promise 2: what was acknowledged is there -----------------------------------------------------


def starts(findings: Findings) -> Iterator[str]:
    """Every acknowledged start has its run."""
    for call in findings.acknowledged("start", "restart"):
        run = findings.evidence.runs.get(call.run)
        if run is None:
            yield f"{call.run}: its start was acknowledged, and it isn't there: {call}"
        elif _given(run) != [call.facts["seed"]]:
            yield f"{call.run}: has the input {_given(run)}, was started with {call}"


def _given(run: Document) -> list[Any]:
    """The arguments with which a run was started, whatever it went on with since."""
    given: list[Any] = run.get("past", run)["input"]["args"]
    return given


def messages(findings: Findings) -> Iterator[str]:
    """Every acknowledged message was taken once, or lies in the inbox."""
    sent: dict[tuple[str, str], Call] = {}
    for call in findings.acknowledged("send"):
        if call.run in findings.evidence.runs and not findings.rewritten(call.run):
            sent[call.run, call.facts.get("message") or f"payload {call.facts['payload']}"] = call
    for (run, message), call in sent.items():
        count = _found(findings, run, call.facts)
        if count != 1:
            yield f"{run}: {message} was acknowledged and is there {count} times: {call}"
    for call in findings.calls:
        if call.op == "send" and _found(findings, call.run, call.facts) > 1:
            yield f"{call.run}: a message is there several times: {call}"


def _found(findings: Findings, run: str, facts: dict[str, Any]) -> int:
    """How often a message is in a run's journal and inbox."""
    id_, payload = facts.get("message"), facts["payload"]
    entries = [e for e in findings.journal(run) if e["kind"] == "message"]
    taken = sum(e["message"] == id_ if id_ else e.get("value") == payload for e in entries)
    taken += _taken_before(findings.evidence.runs.get(run, {})).count(id_)
    inbox = findings.evidence.runs.get(run, {}).get("inbox", ())
    return taken + sum(m["id"] == id_ if id_ else m.get("payload") == payload for m in inbox)


def _taken_before(run: Document) -> list[str]:
    """The ids of the messages that earlier generations of a run took."""
    taken: list[str] = run.get("past", {}).get("taken", [])
    return taken


def order(findings: Findings) -> Iterator[str]:
    """Messages of one channel were taken in the order in which they were acknowledged."""
    for run in findings.runs("mailing", "renewing"):
        entries = [e for e in findings.journal(run["_id"]) if e["kind"] == "message"]
        ids = [*_taken_before(run), *(entry["message"] for entry in entries)]
        for channel in flows.MAILS:
            taken = [id_ for id_ in ids if id_.startswith(f"{channel}-")]
            if taken != sorted(taken):
                yield f"{run['_id']}: taken out of order: {taken}"


def resumes(findings: Findings) -> Iterator[str]:
    """Of several resumes of one slot one at most is acknowledged, and that one counts."""
    won: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in findings.acknowledged("resume"):
        won[call.run, call.facts["name"]].append(call)
    for (run, name), calls in won.items():
        if findings.rewritten(run):
            continue
        if len(calls) > 1:
            yield f"{run}: several resumes of {name} were acknowledged: {calls}"
        inbox = findings.evidence.runs[run].get("inbox", ())
        slot = f"wait:{name}"
        here = [m["payload"] for m in inbox if m["kind"] == "resume" and m["name"] == slot]
        here += [
            entry["value"]
            for entry in findings.journal(run)
            if entry["kind"] == "message" and entry["id"] == slot
        ]
        if here != [calls[0].facts["payload"]]:
            yield f"{run}: a resume of {name} was acknowledged, there is {here}: {calls}"


def cancels(findings: Findings) -> Iterator[str]:
    """An acknowledged cancel is delivered, unless the run had ended."""
    for call in findings.acknowledged("cancel", "terminate"):
        run = findings.evidence.runs.get(call.run)
        if run is None or run["status"] not in ENDED or findings.rewritten(call.run):
            continue
        assert call.ended is not None
        before = run["ended_at"].timestamp() <= call.ended + CLOCKS
        delivered = any(entry["id"] == "cancel" for entry in findings.journal(call.run))
        if run["status"] != "cancelled" and not before and not delivered:
            yield f"{call.run}: {run['status']}, though it was cancelled: {call}"
        if call.op == "terminate" and not before:
            yield f"{call.run}: ended after its termination was acknowledged: {call}"
    for run in findings.runs():
        unread = [m for m in run.get("inbox", ()) if m["kind"] == "cancel"]
        if unread and run["status"] in ("done", "failed"):
            yield f"{run['_id']}: {run['status']} beside a cancel in its inbox: {unread}"


def retries(findings: Findings) -> Iterator[str]:
    """A failed run that was mended and tried again is done."""
    for call in findings.acknowledged("retry"):
        run = findings.evidence.runs[call.run]
        if run["status"] != "done" and not findings.of(call.run, "cancel", "terminate"):
            yield f"{call.run}: {run['status']}, though it was mended: {call}"


def outcomes(findings: Findings) -> Iterator[str]:
    """Runs end as somebody wanted, and no other way."""
    for run in findings.runs():
        run_id, status = run["_id"], run["status"]
        root = findings.root(run_id)
        stopped = findings.of(root, "cancel", "terminate") or (
            # Whoever rewinds or restarts a parent may give up what it has called since.
            run_id != root and (run["workflow"] == "endless" or findings.rewritten(root))
        )
        if status == "cancelled" and not stopped:
            yield f"{run_id}: cancelled by nobody: {run.get('error')}"
        if status == "failed" and run["workflow"] not in FAILING:
            yield f"{run_id}: failed, of itself: {run.get('error')}"
        elif status == "failed" and run["error"]["code"] != FAILING[run["workflow"]]:
            yield f"{run_id}: failed another way: {run.get('error')}"


# -- promise 3: one writer -------------------------------------------------------------------------


def writers(findings: Findings) -> Iterator[str]:
    """Nobody writes once another has begun to work on the run under a later claim."""
    begun: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for row in findings.evidence.effects:
        if row["kind"] == "start":
            begun[row["run"]].append((row["at"], row["fence"]))
    for run_id, entries in findings.evidence.journals.items():
        for entry in entries:
            written_at = entry["at"].timestamp() - CLOCKS
            later = [row for row in begun[run_id] if row[1] > entry["fence"]]
            if any(at < written_at for at, _ in later):
                yield f"{run_id}: {entry} was written after a later claim had begun: {later}"


# -- promise 4: the same values --------------------------------------------------------------------


def results(findings: Findings) -> Iterator[str]:
    """What callers were told, and what is stored, is what the workflow must come to."""
    for run in findings.runs():
        if run["status"] == "done":
            yield from _judge(findings, run, run.get("output"), "stored")
    for call in findings.acknowledged("result"):
        run = findings.evidence.runs.get(call.run)
        if run is None:
            yield f"{call.run}: had a result and is gone: {call}"
            continue
        yield from _judge(findings, run, call.value, "told")
        if run["status"] != "done" and not findings.rewritten(call.run):
            yield f"{call.run}: its result was told, and it is {run['status']}"


def _judge(findings: Findings, run: Document, value: Any, what: str) -> Iterator[str]:
    seed = _given(run)[0]
    wanted = _wanted(findings, run["_id"], run["workflow"], seed)
    if value not in wanted:
        yield f"{run['_id']}: {what} {value} instead of one of {wanted[:5]}"


def _wanted(findings: Findings, run: str, flow: str, seed: int) -> list[Any]:
    """All results that a run may have."""

    def payloads(op: str, **facts: str) -> list[int]:
        calls = [c for c in findings.of(run, op) if facts.items() <= c.facts.items()]
        return [call.facts["payload"] for call in calls]

    nothing = flows.NOTHING
    match flow:
        case "mailing":
            found = [flows.mailed(seed, p) for p in payloads("resume", name="approve")]
        case "racing":
            twice = flows.work_of(flows.work_of(seed))
            found = [
                flows.Sum([got, asked, ran, twice])
                for got in (nothing, *payloads("send"))
                for asked in (nothing, *payloads("resume", name="quick"))
                for ran in (nothing, flows.work_of(seed))
            ]
        case "sparing":
            once = flows.work_of(seed)
            found = [flows.Sum([value, once]) for value in (nothing, once)]
        case "listening":
            found = [flows.Sum([payload]) for payload in payloads("send")]
        case "family":
            ids = [id_ for id_ in findings.evidence.runs if id_.startswith(flows.SHARED)]
            numbers = [int(id_.removeprefix(flows.SHARED)) for id_ in ids]
            found = [
                flows.family_of(seed, number, shared)
                for number in numbers
                for shared in (sum(flows.errand_of(number).values), nothing)
            ]
        case "hopeless" | "endless":
            found = []  # neither ever has one
        case _:
            found = [flows.EXPECTED[flow](seed)]
    return msgspec.to_builtins(found)


def races(findings: Findings) -> Iterator[str]:
    """A race was decided as its journal says."""
    for run in findings.runs("racing"):
        if run["status"] != "done":
            continue
        entries = {entry["id"]: entry for entry in findings.journal(run["_id"])}
        got, asked, ran, _ = run["output"]["values"]
        for slot, value in (("receive:race", got), ("wait:quick", asked)):
            taken = entries[slot]["value"] if slot in entries else flows.NOTHING
            if taken != value:
                yield f"{run['_id']}: {slot} was {value}, recorded is {entries.get(slot)}"
        if ("slow" in entries) != (ran != flows.NOTHING):
            yield f"{run['_id']}: slow was {ran}, recorded is {entries.get('slow')}"


# -- time ------------------------------------------------------------------------------------------


def naps(findings: Findings) -> Iterator[str]:
    """Nobody is woken early, by the clock on the wall."""
    for run_id, slept, nap in _naps(findings):
        if slept < nap - CLOCKS:
            yield f"{run_id}: slept {slept:.3f} s instead of {nap}"


def _naps(findings: Findings) -> Iterator[tuple[str, float, float]]:
    for run in findings.runs("chain"):
        steps = {entry["id"]: entry for entry in findings.journal(run["_id"])}
        if "before_nap" in steps and "after_nap" in steps:
            fell_asleep = findings.ended(steps["before_nap"]["value"]["effect"])
            woken = findings.started(steps["after_nap"]["value"]["effect"])
            if fell_asleep is not None and woken is not None:
                yield run["_id"], woken - fell_asleep, flows.nap_of(run["input"]["args"][0])


def delays(findings: Findings) -> Iterator[str]:
    """A delayed start is delayed."""
    first: dict[str, float] = {}
    for (run, _), ran in findings.executions.items():
        first[run] = min(first.get(run, ran[0]["at"]), ran[0]["at"])
    for run, at in first.items():
        call = min(findings.of(run, "start"), key=lambda call: call.began, default=None)
        if (
            call is not None
            and call.facts["delay"]
            and at < call.began + call.facts["delay"] - CLOCKS
        ):
            yield f"{run}: began {at - call.began:.3f} s after {call}"


# -- cleanup, errors, logs -------------------------------------------------------------------------


def cleanups(findings: Findings) -> Iterator[str]:
    """What a `finally` does was done, unless the run was cut short for good."""
    for run in findings.runs("guarded", "endless"):
        run_id = run["_id"]
        # A second cancel, or one that comes late, reaches the cleanup itself, as asyncio has it.
        if findings.of(run_id, "terminate", "restart") or len(findings.of(run_id, "cancel")) > 1:
            continue
        if run_id != findings.root(run_id) and findings.rewritten(findings.root(run_id)):
            continue  # each life of the parent may have cancelled it
        steps = {entry["id"] for entry in findings.journal(run_id)}
        if "reserve" in steps and not steps & {"slow", "restore"}:
            yield f"{run_id}: reserved and not restored: {documents.describe([run])}"


def errors(findings: Findings) -> Iterator[str]:
    """Callers get the errors that they are promised, and no others."""
    for call in findings.calls:
        if call.outcome == "broken":
            yield f"{call.run}: {call.op} raised {call.told}"
    for event in findings.events:
        if event["event"] == "fault":
            yield f"{event['run']}: a client's life ended: {event['told']}"


def logs(findings: Findings) -> Iterator[str]:
    """Nothing grave is logged."""
    for name, text in findings.logs.items():
        lines = text.splitlines()
        grave = [i for i, line in enumerate(lines) if _GRAVE.search(line)]
        told = [i for i in grave if not _EXPECTED.search(lines[i])]
        # Stacks of a blocked event loop are told as such, right before.
        for index in told[:3]:
            yield f"{name}.log line {index + 1}: " + "\n".join(lines[index : index + 25])


CHECKS: dict[str, Callable[[Findings], Iterator[str]]] = {
    each.__name__: each
    for each in (
        documents_alone,
        at_most_once,
        starts,
        messages,
        order,
        resumes,
        cancels,
        retries,
        outcomes,
        writers,
        results,
        races,
        naps,
        delays,
        cleanups,
        families.told_once,
        families.whole,
        families.outboxes,
        families.payloads,
        errors,
        logs,
    )
}


def summarize(findings: Findings) -> str:
    """Say how much was done."""
    calls = Counter((call.op, call.outcome or "cut off") for call in findings.calls)
    by_op: dict[str, list[str]] = defaultdict(list)
    for (op, outcome), count in sorted(calls.items()):
        by_op[op].append(f"{count} {outcome}")
    statuses = Counter((run["workflow"], run["status"]) for run in findings.runs())
    late = sorted(slept - nap for _, slept, nap in _naps(findings)) or [0.0]
    median, most = late[len(late) // 2], late[-1]
    begun = [row for row in findings.evidence.effects if row["kind"] == "start"]
    spilled = sum(bool(run.get("spilled")) for run in findings.runs())
    followed = sum(bool(run.get("followers")) for run in findings.runs())
    return "\n".join(
        [
            f"operations: {len(findings.calls)}",
            *(f"  {op}: {', '.join(counts)}" for op, counts in by_op.items()),
            f"runs: {len(findings.evidence.runs)}",
            *(f"  {flow} {status}: {count}" for (flow, status), count in sorted(statuses.items())),
            (
                f"step executions: {len(begun)}, {_repeated(begun)} of them again "
                "(by a crash, a rewind, a restart)"
            ),
            f"runs with payloads outside: {spilled}; children that others follow: {followed}",
            f"naps: {len(late)}, late by {median:.2f} s (median), {most:.2f} s (most)",
        ]
    )


def _repeated(begun: list[Document]) -> int:
    counts = Counter((row["run"], row["generation"], row["step"], row["attempt"]) for row in begun)
    return sum(count - 1 for count in counts.values())

"""What the checker says of families: nothing of a sound one, and something of each fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.checker import Evidence
from tests.chaos import families
from tests.chaos.findings import Findings

Document = dict[str, Any]


def child(name: str, workflow: str = "errand", **fields: Any) -> Document:
    parent = {"run": "p", "slot": name, "code": "family"}
    return {"_id": f"p/{name}", "workflow": workflow, "parent": parent, **fields}


def began(slot: str) -> Document:
    return {"id": slot, "kind": "child", "value": {"run": f"p/{slot}"}}


def told(slot: str, **fields: Any) -> Document:
    return {"id": slot, "kind": "outcome", **fields}


def a_family() -> Findings:
    runs = [
        {"_id": "p", "workflow": "family", "status": "done"},
        child("errand", status="done", output={"values": [1]}),
        child("hopeless", workflow="hopeless", status="failed", error={"code": "STEP_FAILED"}),
        child("endless", workflow="endless", status="cancelled"),
    ]
    journal = [
        began("errand"),
        began("endless"),
        told("errand", value={"values": [1]}),
        began("hopeless"),
        told("hopeless", error={"code": "WORKFLOW_FAILED"}),
    ]
    evidence = Evidence({run["_id"]: run for run in runs}, {"p": journal}, [])
    return Findings(evidence, [], [], {}, [])


def wrongs(findings: Findings) -> list[str]:
    checks = (families.told_once, families.whole, families.outboxes, families.payloads)
    return [wrong for each in checks for wrong in each(findings)]


def tell_twice(findings: Findings) -> None:
    findings.journal("p").append(told("errand", value={"values": [1]}))


def tell_another_value(findings: Findings) -> None:
    findings.journal("p")[2]["value"] = {"values": [2]}


def tell_of_a_success(findings: Findings) -> None:
    findings.journal("p")[4] = told("hopeless", value={"values": [1]})


def forget_to_tell(findings: Findings) -> None:
    del findings.journal("p")[2]


def bear_unknown_to_the_parent(findings: Findings) -> None:
    findings.evidence.runs["p/errand#2"] = child("errand#2", status="done", output=None)


def lose_the_child(findings: Findings) -> None:
    del findings.evidence.runs["p/errand"]


def keep_a_dispatch(findings: Findings) -> None:
    findings.evidence.runs["p/errand"]["outbox"] = [{"kind": "outcome", "to": "p", "rev": 3}]


def miss_a_payload(findings: Findings) -> None:
    findings.missing.append("p: journal refers to what isn't there")


def test_a_sound_family_passes() -> None:
    assert wrongs(a_family()) == []


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        (tell_twice, "outcome recorded several times"),
        (tell_another_value, "the child came to"),
        (tell_of_a_success, "the child is failed"),
        (forget_to_tell, "without having heard of p/errand"),
        (bear_unknown_to_the_parent, "without having heard of p/errand#2"),
        (lose_the_child, "aren't there"),
        (keep_a_dispatch, "has still to tell"),
        (miss_a_payload, "refers to"),
    ],
)
def test_each_fault_is_reported(fault: Callable[[Findings], None], report: str) -> None:
    findings = a_family()
    fault(findings)
    found = wrongs(findings)
    assert any(report in wrong for wrong in found), found

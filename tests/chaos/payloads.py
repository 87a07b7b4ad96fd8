"""Payloads that runs keep outside of their documents, for whoever reads documents alone."""

from __future__ import annotations

from typing import Any

import msgspec
from bson.objectid import ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from tests.acceptance.checker import Evidence

Document = dict[str, Any]


async def with_payloads(
    database: AsyncDatabase[Document], evidence: Evidence
) -> tuple[Evidence, list[str]]:
    """Put what runs refer to in the places of the references.

    Returns:
        The evidence, and what is missing, as text. A reference to it stays where it is.
    """
    heads = {head["_id"]: head async for head in database.workflow_payloads.find({})}
    missing: list[str] = []

    def fill(run_id: str, place: str, value: Any) -> Any:
        if isinstance(value, list):
            return [fill(run_id, place, each) for each in value]
        if not isinstance(value, dict):
            return value
        if not isinstance(value.get("payload"), ObjectId):
            return {name: fill(run_id, f"{place}.{name}", each) for name, each in value.items()}
        head = heads.get(value["payload"])
        if head is None or head["run"] != run_id or "content" not in head:
            missing.append(f"{run_id}: {place} refers to {value}, there is {head}")
            return value
        return head["content"]["v"]

    runs = {id_: fill(id_, "run", run) for id_, run in evidence.runs.items()}
    for run in runs.values():
        for given in (run, run.get("past", {})):
            _spread(given.get("input", {}))
    journals = {id_: fill(id_, "journal", entries) for id_, entries in evidence.journals.items()}
    return msgspec.structs.replace(evidence, runs=runs, journals=journals), missing


def _spread(given: Document) -> None:
    """Large arguments are one payload, `[args, kwargs]`, in the place of `args`."""
    match given.get("args"):
        case [[[*args], {**kwargs}]]:
            given["args"], given["kwargs"] = args, kwargs

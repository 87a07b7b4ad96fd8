"""The definitions that a process knows, by name and version."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from streamline.definitions.step import Step
from streamline.definitions.workflow import Workflow
from streamline.errors import DefinitionConflict, WorkflowNotFound


class Place(msgspec.Struct, frozen=True):
    """Where a function is defined. Equal for a script and an import of the same file."""

    file: str
    qualname: str
    line: int

    @classmethod
    def of(cls, fn: Callable[..., Any]) -> Place:
        """Return where a function is defined."""
        code = inspect.unwrap(fn).__code__
        return cls(code.co_filename, fn.__qualname__, code.co_firstlineno)

    def same_function(self, other: Place) -> bool:
        """Whether both are the same function, perhaps of an edited file or a notebook's cell."""
        if self.qualname != other.qualname:
            return False
        return self.file == other.file or (_is_cell(self.file) and _is_cell(other.file))

    def __str__(self) -> str:
        return f"{self.qualname} ({self.file}:{self.line})"


class Registry:
    """Workflows and step names known to a process.

    Pass one to `@workflow(registry=...)`, `@step(registry=...)` and `Streamline(registry=...)` to
    keep definitions apart; by default all use one global registry.
    """

    def __init__(self) -> None:
        self._workflows: dict[str, dict[str, Workflow[..., Any]]] = {}
        self._newest: dict[str, Workflow[..., Any]] = {}
        self._places: dict[tuple[str, str, str], Place] = {}

    def add_workflow(self, workflow: Workflow[..., Any]) -> None:
        """Register a workflow; the same function defined again replaces itself.

        Raises:
            DefinitionConflict: Another function has this name and version.
        """
        self._claim_name("workflow", workflow.name, workflow.version, workflow.fn)
        versions = self._workflows.setdefault(workflow.name, {})
        versions[workflow.version] = workflow
        self._newest[workflow.name] = max(versions.values(), key=_version_key)

    def add_step(self, step: Step[..., Any]) -> None:
        """Register the name of a step; raises what `add_workflow` raises."""
        self._claim_name("step", step.name, "", step.fn)

    def find(self, name: str, version: str | None = None) -> Workflow[..., Any]:
        """Return a workflow: of this version, or the newest one.

        Raises:
            WorkflowNotFound: None of that name (and version) is registered.
        """
        versions = self._workflows.get(name, {})
        if version is not None and version in versions:
            return versions[version]
        if version is None and versions:
            return self._newest[name]
        wanted = name if version is None else f"{name} {version}"
        known = ", ".join(sorted(self._workflows)) or "none"
        raise WorkflowNotFound(
            f"workflow {wanted!r} is not registered in this process; known are: {known}. "
            "Import the module that defines it before the engine starts"
        )

    def find_code(self, code: str) -> Workflow[..., Any]:
        """Return the workflow for a run's `code`: `name`, or `name@version` of a pinned one."""
        name, _, version = code.partition("@")
        return self.find(name, version or None)

    def codes(self) -> list[str]:
        """Return the `code`s of all runs that the definitions here can take."""
        return [
            code
            for name, versions in self._workflows.items()
            for code in (name, *(f"{name}@{version}" for version in versions))
        ]

    def takes(self, code: str) -> bool:
        """Whether the definitions here can take the runs of a `code`."""
        name, pinned, version = code.partition("@")
        versions = self._workflows.get(name, {})
        return version in versions if pinned else bool(versions)

    def __iter__(self) -> Iterator[Workflow[..., Any]]:
        for versions in self._workflows.values():
            yield from versions.values()

    def _claim_name(self, kind: str, name: str, version: str, fn: Callable[..., Any]) -> None:
        place = Place.of(fn)
        other = self._places.get((kind, name, version))
        if other is not None and not place.same_function(other):
            label = f"{name} {version}".rstrip()
            raise DefinitionConflict(
                f"two {kind}s are named {label!r}: {other} and {place}. Give one of them "
                f"another name= {'or version= ' if kind == 'workflow' else ''}or its own registry"
            )
        self._places[kind, name, version] = place


default_registry: Registry = Registry()
"""The registry that definitions and engines use unless told otherwise."""


def _is_cell(file: str) -> bool:
    return file.startswith("<") or "ipykernel" in file


def _version_key(workflow: Workflow[..., Any]) -> list[tuple[int, int | str]]:
    """Order versions by their numbers: 1.10.0 after 1.9.0; words sort before numbers."""
    parts = workflow.version.replace("-", ".").split(".")
    return [(1, int(part)) if part.isdigit() else (0, part) for part in parts]

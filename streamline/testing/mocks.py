"""Workflows whose bodies are mocks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from streamline.definitions import Step, Workflow
from streamline.definitions.step import StepDefaults, StepOptions


def mocked_workflow(
    flow: Workflow[..., Any], stand_in: Callable[..., Coroutine[Any, Any, Any]]
) -> Workflow[..., Any]:
    """Return a workflow that takes the place of another and only calls a stand-in.

    As a step of it, so that a replay doesn't call it again.
    """
    step: Step[..., Any] = Step(
        stand_in,
        name=flow.name,
        options=StepOptions(attempts=1),
        signature=flow.signature,
    )

    async def body(*args: Any, **kwargs: Any) -> Any:
        return await step(*args, **kwargs)

    return Workflow(
        body,
        name=flow.name,
        version=flow.version,
        timeout=flow.timeout,
        retention=flow.retention,
        step_defaults=StepDefaults(),
        on_failure=None,
        pin=flow.pin,
        signature=flow.signature,
    )

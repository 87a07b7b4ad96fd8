"""What users define: steps, workflows, and the registry that knows them."""

from streamline.definitions.decorators import step, workflow
from streamline.definitions.registry import Registry, default_registry
from streamline.definitions.signature import Signature
from streamline.definitions.step import Step, StepDefaults, StepOptions
from streamline.definitions.workflow import Launch, Workflow

__all__ = [
    "Launch",
    "Registry",
    "Signature",
    "Step",
    "StepDefaults",
    "StepOptions",
    "Workflow",
    "default_registry",
    "step",
    "workflow",
]

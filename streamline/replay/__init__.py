"""The pure core: a body on a deterministic loop, driven by journal entries."""

from streamline.replay.commands import (
    ChildCommand,
    Command,
    SlotCommand,
    StepCommand,
    TimerCommand,
)
from streamline.replay.execution import CANCEL, Execution
from streamline.replay.outcome import Cancelled, Continued, Failed, Outcome, Returned

__all__ = [
    "CANCEL",
    "Cancelled",
    "ChildCommand",
    "Command",
    "Continued",
    "Execution",
    "Failed",
    "Outcome",
    "Returned",
    "SlotCommand",
    "StepCommand",
    "TimerCommand",
]

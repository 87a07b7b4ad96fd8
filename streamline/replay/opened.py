"""`OpenCommands`: what a body has asked for and nothing has answered yet."""

from __future__ import annotations

from streamline.replay.commands import (
    ChildCommand,
    Command,
    SlotCommand,
    StepCommand,
    TimerCommand,
)


class OpenCommands(dict[str, Command]):
    """Commands by id, in the order in which they were issued.

    Those other than steps are kept by their kind, too: they are asked for at every turn, and most
    of the time there are none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.timers: dict[str, TimerCommand] = {}
        self.slots: dict[str, SlotCommand | ChildCommand] = {}
        """All that a message answers, children included."""
        self.children: dict[str, ChildCommand] = {}

    def add(self, command: Command) -> None:
        """Take in a command."""
        self[command.id] = command
        if isinstance(command, StepCommand):
            return
        if isinstance(command, TimerCommand):
            self.timers[command.id] = command
        elif isinstance(command, (SlotCommand, ChildCommand)):
            self.slots[command.id] = command
            if isinstance(command, ChildCommand):
                self.children[command.id] = command

    def remove(self, id_: str) -> bool:
        """Forget a command; returns whether it was there."""
        command = self.pop(id_, None)
        if command is not None and not isinstance(command, StepCommand):
            self.timers.pop(id_, None)
            self.slots.pop(id_, None)
            self.children.pop(id_, None)
        return command is not None

    def clear(self) -> None:
        """Forget all."""
        super().clear()
        self.timers.clear()
        self.slots.clear()
        self.children.clear()

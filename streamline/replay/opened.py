"""`OpenCommands`: what a body has asked for and nothing has answered yet; and what is new in it."""

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
        self.issued: list[Command] = []
        self.withdrawn: list[str] = []
        self._counts: dict[str, int] = {}

    # -- what the body does -----------------------------------------------------------------------

    def next_id(self, name: str) -> str:
        """Return the id of the next command of a name."""
        count = self._counts.get(name, 0) + 1
        self._counts[name] = count
        return name if count == 1 else f"{name}#{count}"

    def issue(self, command: Command) -> None:
        """Take in a command."""
        self.issued.append(command)
        self[command.id] = command
        if isinstance(command, StepCommand):
            return
        if isinstance(command, TimerCommand):
            self.timers[command.id] = command
        elif isinstance(command, (SlotCommand, ChildCommand)):
            self.slots[command.id] = command
            if isinstance(command, ChildCommand):
                self.children[command.id] = command

    def withdraw(self, id_: str) -> None:
        """Take a command back, if it is still open."""
        if self.remove(id_):
            self.withdrawn.append(id_)

    # -- what becomes of it -----------------------------------------------------------------------

    def take_issued(self) -> list[Command]:
        """Return the commands issued since the last call, that are still open."""
        self.drop_answered()
        issued, self.issued = self.issued, []
        return issued

    def take_withdrawn(self) -> list[str]:
        """Return the ids of the commands withdrawn since the last call."""
        withdrawn, self.withdrawn = self.withdrawn, []
        return withdrawn

    def drop_answered(self) -> None:
        """Forget of what was issued what is answered by now."""
        self.issued = [command for command in self.issued if self.get(command.id) is command]

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
        self.issued.clear()
        self.timers.clear()
        self.slots.clear()
        self.children.clear()

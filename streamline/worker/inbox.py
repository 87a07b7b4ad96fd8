"""`Inbox`: the messages of one run that its body hasn't taken yet, as far as this worker knows."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from streamline.codec import PayloadRef
from streamline.model import Message, MessageKind, Run, Slot, SlotKind


class Inbox:
    """Messages in order. What is taken is remembered until the commit that removes it."""

    def __init__(self, run: Run) -> None:
        self.seq: int = run.inbox_seq
        self.followers: list[str] = run.followers
        self.taken: list[str] = []
        self.wanted: Message | None = None
        """The message that would be taken next, were its large payload at hand."""
        self._messages = list(run.inbox)
        self._supplied: dict[str, Message] = {}

    @property
    def empty(self) -> bool:
        """Whether no message is known that could be taken."""
        return not self._messages

    def refresh(self, run: Run) -> None:
        """Take in the inbox as it is stored now, less what was taken."""
        self.seq = run.inbox_seq
        self.followers = run.followers
        taken = set(self.taken)
        left = [message for message in run.inbox if message.id not in taken]
        if self._supplied:
            left = [self._supplied.get(message.id, message) for message in left]
        self._messages = left

    def supply(self, message: Message) -> None:
        """Take in the wanted message with its payload."""
        self.wanted = None
        self._supplied[message.id] = message
        self._messages = [message if each.id == message.id else each for each in self._messages]

    def take(self, slots: Iterable[Slot]) -> tuple[Message, Slot | None] | None:
        """Take the first message that something waits for: a cancel, or one that fits a slot.

        Returns:
            The message and the slot that it fits, None for a cancel; or None if there is nothing,
            or something is `wanted` first.
        """
        self.wanted = None
        for index, message in enumerate(self._messages):
            slot = next((slot for slot in slots if _fits(message, slot)), None)
            if slot is not None or message.kind is MessageKind.CANCEL:
                if type(message.payload) is PayloadRef:
                    self.wanted = message
                    return None
                self._supplied.pop(message.id, None)
                del self._messages[index]
                self.taken.append(message.id)
                if message.kind is MessageKind.CANCEL:
                    self._drop_pauses(index)
                return message, slot
        return None

    def _drop_pauses(self, until: int) -> None:
        """Drop the pauses that came before a cancel: they would keep its cleanup from running."""
        pauses = [m for m in self._messages[:until] if m.kind is MessageKind.PAUSE]
        self.taken.extend(pause.id for pause in pauses)
        self._messages = [m for m in self._messages if m not in pauses]

    def all_of(self, kind: MessageKind) -> list[Message]:
        """Return all messages of a kind, and leave them there."""
        return [message for message in self._messages if message.kind is kind]

    def drop(self, message_ids: Collection[str]) -> None:
        """Drop messages that nobody will take."""
        if message_ids:
            self.taken.extend(message_ids)
            self._messages = [m for m in self._messages if m.id not in message_ids]

    def outcomes(self) -> dict[str, Message]:
        """Return what is told of the ends of runs, by their ids."""
        return {m.name: m for m in self._messages if m.kind is MessageKind.OUTCOME}

    def find(self, kind: MessageKind) -> Message | None:
        """Return the first message of a kind, and leave it there."""
        return next((message for message in self._messages if message.kind is kind), None)


def _fits(message: Message, slot: Slot) -> bool:
    if message.kind is MessageKind.RESUME:
        return message.name == slot.id
    if message.kind is MessageKind.OUTCOME:
        return slot.kind is SlotKind.CHILD and message.name == slot.name
    return (
        message.kind is MessageKind.SEND
        and slot.kind is SlotKind.RECEIVE
        and message.name == slot.name
    )

"""`Sealer` and `Opener`: which fields of runs, commits and messages are payloads, and their names.

What the engine and the inner store need stays readable; None and an empty context stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from streamline.codec import Failure, PayloadCodec, PayloadRef
from streamline.errors import DataCorruption, ErrorCode, StreamlineError
from streamline.model import (
    Attempt,
    Commit,
    Continuation,
    Dispatch,
    Entry,
    Input,
    Message,
    Past,
    Run,
    Slot,
)
from streamline.store.encoding import to_builtins

MARK = "sealed/"
"""What the codes of sealed runs begin with."""
_TEXT = "(sealed)"
"""What stands where a text was: a wait's reason, an error's message."""
_FIRST = "past/input"
_ERROR_FIELDS = ("message", "traceback", "args", "attributes", "notes", "cause", "parts")

_change = msgspec.structs.replace


class Sealer:
    """Seals the payloads of what goes into a store."""

    def __init__(self, codec: PayloadCodec) -> None:
        self._codec = codec

    def run(self, run: Run) -> Run:
        """Return a run sealed."""
        return _change(
            run,
            code=MARK + run.code,
            input=self._input(run.input, run.id),
            context=self.context(run.context, run.id, "context"),
            output=self._value(run.output, run.id, "output"),
            error=self.failure(run.error, run.id, "error"),
            journal=[self.entry(entry, run.id) for entry in run.journal],
            inbox=[self.message(message, run.id) for message in run.inbox],
            awaiting=[self._slot(slot, run.id) for slot in run.awaiting],
            attempts=[self._attempt(attempt, run.id) for attempt in run.attempts],
            past=None if run.past is None else self._past(run.past, run.id),
            outbox=[self._dispatch(each, run.id) for each in run.outbox],
        )

    def commit(self, commit: Commit) -> Commit:
        """Return a commit sealed."""
        run_id = commit.run_id
        changes: dict[str, Any] = {}
        if commit.entries:
            changes["entries"] = self._entries(commit.entries, run_id)
        if commit.archive:
            changes["archive"] = self._entries(commit.archive, run_id)
        if commit.awaiting:
            changes["awaiting"] = tuple(self._slot(slot, run_id) for slot in commit.awaiting)
        if commit.attempts:
            changes["attempts"] = tuple(self._attempt(each, run_id) for each in commit.attempts)
        if commit.context is not None:
            changes["context"] = self.context(commit.context, run_id, "context")
        if commit.output is not None:
            changes["output"] = self._value(commit.output, run_id, "output")
        if commit.error is not None:
            changes["error"] = self.failure(commit.error, run_id, "error")
        if commit.continuation is not None:
            changes["continuation"] = self._continuation(commit.continuation, run_id)
        if commit.outbox:
            changes["outbox"] = tuple(self._dispatch(each, run_id) for each in commit.outbox)
        return _change(commit, **changes) if changes else commit

    def entry(self, entry: Entry, run_id: str) -> Entry:
        """Return a journal entry sealed."""
        if entry.value is None and entry.error is None and not entry.context:
            return entry
        place = entry.place
        return _change(
            entry,
            value=self._value(entry.value, run_id, place),
            error=self.failure(entry.error, run_id, f"{place}/error"),
            context=self.context(entry.context, run_id, f"{place}/context"),
        )

    def _entries(self, entries: Iterable[Entry], run_id: str) -> tuple[Entry, ...]:
        return tuple(self.entry(entry, run_id) for entry in entries)

    def message(self, message: Message, run_id: str) -> Message:
        """Return a message sealed."""
        if message.payload is None and message.error is None:
            return message
        return _change(
            message,
            payload=self._value(message.payload, run_id, message.place),
            error=self.failure(message.error, run_id, f"{message.place}/error"),
        )

    def failure(self, failure: Any, run_id: str, place: str) -> Any:
        """Return a failure whose code, type and step are readable, and nothing else."""
        if failure is None:
            return None
        data = to_builtins(failure)
        details = {name: data[name] for name in _ERROR_FIELDS if name in data}
        return Failure(
            code=failure.code,
            type=failure.type,
            message=_TEXT,
            step=failure.step,
            attributes={"sealed": self._value(details, run_id, place)},
        )

    def heartbeat(self, details: object, run_id: str, step: str) -> Any:
        """Return the details of a heartbeat sealed."""
        return self._value(details, run_id, f"attempts/{step}")

    def context(self, context: Any, run_id: str, place: str) -> Any:
        """Return a context, sealed if the codec does that."""
        if not context or not self._codec.seals_context:
            return context
        return {"sealed": self._value(dict(context), run_id, place)}

    def _input(self, given: Input, run_id: str, place: str = "input") -> Input:
        context = self.context(given.context, run_id, f"{place}/context")
        if given.payload is not None:
            return _change(given, context=context)
        args = [self._value([given.args, given.kwargs], run_id, place)]
        return Input(args=args, context=context)

    def _past(self, past: Past, run_id: str) -> Past:
        return _change(past, input=self._input(past.input, run_id, _FIRST))

    def _continuation(self, next_: Continuation, run_id: str) -> Continuation:
        return _change(
            next_,
            # A plain run becomes a sealed one here: nothing of its journal is left.
            code=MARK + next_.code,
            input=self._input(next_.input, run_id),
            past=self._past(next_.past, run_id),
        )

    def _slot(self, slot: Slot, run_id: str) -> Slot:
        if slot.reason is None and slot.data is None:
            return slot
        asked = self._value([slot.reason, slot.data], run_id, f"awaiting/{slot.id}")
        return _change(slot, reason=_TEXT, data=asked)

    def _attempt(self, attempt: Attempt, run_id: str) -> Attempt:
        if attempt.heartbeat is None:
            return attempt
        return _change(attempt, heartbeat=self.heartbeat(attempt.heartbeat, run_id, attempt.id))

    def _dispatch(self, dispatch: Dispatch, run_id: str) -> Dispatch:
        place = f"outbox/{dispatch.rev}/{dispatch.to}"
        return _change(dispatch, reason=self._value(dispatch.reason, run_id, place))

    def _value(self, native: Any, run_id: str, place: str) -> Any:
        if native is None or type(native) is PayloadRef:
            return native
        return self._codec.encode(native, run_id=run_id, field=place)


class Opener:
    """Opens what `Sealer` sealed; everything raises `DataCorruption` where that can't be done."""

    def __init__(self, codec: PayloadCodec) -> None:
        self._codec = codec

    def run(self, run: Run) -> Run:
        """Return a run as it was given in."""
        return _change(
            run,
            code=opened_code(run.code),
            input=self._input(run.input, run, "input"),
            context=self._context(run.context, run.id, "context"),
            output=self._value(run.output, run.id, "output"),
            error=self._failure(run.error, run.id, "error"),
            journal=[self.entry(entry, run.id) for entry in run.journal],
            inbox=[self._message(message, run.id) for message in run.inbox],
            awaiting=[self._slot(slot, run) for slot in run.awaiting],
            attempts=[self._attempt(attempt, run.id) for attempt in run.attempts],
            past=None if run.past is None else self._past(run.past, run),
            outbox=self.outbox(run.outbox, run.id),
        )

    def outbox(self, dispatches: Sequence[Dispatch], run_id: str) -> list[Dispatch]:
        """Return dispatches as they were given in."""
        return [self._dispatch(each, run_id) for each in dispatches]

    def _dispatch(self, dispatch: Dispatch, run_id: str) -> Dispatch:
        place = f"outbox/{dispatch.rev}/{dispatch.to}"
        try:
            return _change(dispatch, reason=self._value(dispatch.reason, run_id, place))
        except DataCorruption:
            # Told without its reason: one that can't be opened must not hold up the others.
            return _change(dispatch, reason=None)

    def entry(self, entry: Entry, run_id: str) -> Entry:
        """Return a journal entry as it was given in."""
        if entry.value is None and entry.error is None and not entry.context:
            return entry
        place = entry.place
        return _change(
            entry,
            value=self._value(entry.value, run_id, place),
            error=self._failure(entry.error, run_id, f"{place}/error"),
            context=self._context(entry.context, run_id, f"{place}/context"),
        )

    def _message(self, message: Message, run_id: str) -> Message:
        if message.payload is None and message.error is None:
            return message
        return _change(
            message,
            payload=self._value(message.payload, run_id, message.place),
            error=self._failure(message.error, run_id, f"{message.place}/error"),
        )

    def _failure(self, failure: Failure | None, run_id: str, place: str) -> Failure | None:
        if failure is None:
            return None
        if failure.attributes.keys() != {"sealed"}:
            # What is said of a run that was set aside is plain, and no payload.
            if failure.code == ErrorCode.DATA_CORRUPTION or self._codec.accepts_plain:
                return failure
            raise _not_sealed(run_id, place)
        sealed = self._value(failure.attributes["sealed"], run_id, place)
        details = _convert(sealed, dict[str, Any], run_id, place)
        data = {"code": failure.code, "type": failure.type, "step": failure.step}
        opened: Failure = _convert({**data, **details}, Failure, run_id, place)
        return opened

    def _context(self, context: Any, run_id: str, place: str) -> Any:
        if not context or not self._codec.seals_context:
            return context
        if context.keys() != {"sealed"}:
            if self._codec.accepts_plain:
                return context
            raise _not_sealed(run_id, place)
        return _convert(
            self._value(context["sealed"], run_id, place), dict[str, Any], run_id, place
        )

    def _past(self, past: Past, run: Run) -> Past:
        return _change(past, input=self._input(past.input, run, _FIRST))

    def _input(self, given: Input, run: Run, place: str) -> Input:
        if not run.code.startswith(MARK) and self._codec.accepts_plain:
            return given
        context = self._context(given.context, run.id, f"{place}/context")
        if given.payload is not None:
            return _change(given, context=context)
        if len(given.args) != 1 or given.kwargs:
            raise _not_sealed(run.id, place)
        opened = self._value(given.args[0], run.id, place)
        args, kwargs = _convert(opened, tuple[list[Any], dict[str, Any]], run.id, place)
        return Input(args=args, kwargs=kwargs, context=context)

    def _slot(self, slot: Slot, run: Run) -> Slot:
        if slot.reason is None and slot.data is None:
            return slot
        if slot.reason != _TEXT and self._codec.accepts_plain:
            return slot
        place = f"awaiting/{slot.id}"
        asked = self._value(slot.data, run.id, place)
        reason, data = _convert(asked, tuple[str | None, Any], run.id, place)
        return _change(slot, reason=reason, data=data)

    def _attempt(self, attempt: Attempt, run_id: str) -> Attempt:
        if attempt.heartbeat is None:
            return attempt
        beat = self._value(attempt.heartbeat, run_id, f"attempts/{attempt.id}")
        return _change(attempt, heartbeat=beat)

    def _value(self, stored: Any, run_id: str, place: str) -> Any:
        if stored is None or type(stored) is PayloadRef:
            return stored
        try:
            return self._codec.decode(stored, run_id=run_id, field=place)
        except StreamlineError:
            raise
        except Exception as error:  # a codec of the user's own that fails
            raise DataCorruption(
                f"The payload {place!r} of run {run_id!r} can't be opened: "
                f"{type(error).__name__}: {error}",
                run_id=run_id,
            ) from error


def opened_code(code: str) -> str:
    """Return the code of a sealed run as the engine knows it."""
    return code.removeprefix(MARK)


def _convert(data: Any, type_: Any, run_id: str, place: str) -> Any:
    try:
        return msgspec.convert(data, type_)
    except msgspec.ValidationError as error:
        raise _not_sealed(run_id, place) from error


def _not_sealed(run_id: str, place: str) -> DataCorruption:
    return DataCorruption(
        f"{place!r} of run {run_id!r} was not stored through the payload codec. If the run was "
        "started without one, let the codec accept plain payloads; else restore its document.",
        run_id=run_id,
    )

"""The values that a body sees are the same on the first pass and on every replay."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any

import attrs
import msgspec
import pydantic
import pytest
from replay_player import EPOCH, LIMIT, Player, make_run, play, replay, step, workflow

from streamline import context as run
from streamline.errors import InvalidState, StepNotFound, ValidationError
from streamline.model import Entry, EntryKind
from streamline.replay import Execution, Returned, SlotCommand, StepCommand
from streamline.replay.commands import detach


@dataclass
class Order:
    id: str
    lines: list[int]


@step
def echo(value: Any = None) -> Any:
    return value


@step
def total(order: Order) -> int:
    order.lines.append(1000)
    return sum(order.lines)


@step
def load() -> Order:
    return Order("o", [1, 2])


@step
def fail(kind: str) -> None:
    raise {"key": KeyError, "value": ValueError}[kind](kind)


def test_a_tuple_of_an_unannotated_step_is_a_list_on_both_passes() -> None:
    @workflow
    async def flow() -> list[Any]:
        found = await echo((1, 2))
        return [type(found).__name__, found]

    assert play(flow).value == ["list", [1, 2]]


def test_what_a_step_does_to_its_arguments_the_body_does_not_see() -> None:
    @workflow
    async def flow(order: Order) -> list[Any]:
        sums = [await total(order), await total(order=order)]
        order.lines.append(5)
        return [*sums, await total(order), order.lines]

    assert play(flow, Order("o", [1])).value == [1001, 1001, 1006, [1, 5]]


def test_every_kind_of_data_is_detached() -> None:
    @attrs.define
    class Attrs:
        lines: list[int]

    class Struct(msgspec.Struct):
        lines: list[int]

    class Model(pydantic.BaseModel):
        lines: list[int]

    for value in (Attrs([1]), Struct([1]), Model(lines=[1]), Order("o", [1])):
        detached = detach(value)
        detached.lines.append(2)
        assert value.lines == [1]
    for data in (deque([[1]]), {"a": [1]}, ([1],), {"b": {1}}, bytearray(b"1")):
        assert detach(data) == data
        assert detach(data) is not data


def test_arguments_that_are_no_data_are_passed_as_they_are() -> None:
    class Client:
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("can't be copied")

    client = Client()

    @workflow
    async def flow() -> None:
        await echo(client)
        await echo([client])

    execution = Player(flow, max_entries=0).play().execution
    command = execution.open["echo"]
    assert isinstance(command, StepCommand)
    assert command.args == (client,)


def test_what_the_body_does_to_a_result_the_journal_does_not_see() -> None:
    @workflow
    async def flow() -> list[Any]:
        found = await echo({"items": [1, 2]})
        found["items"].pop()
        message = await run.receive("box")
        message["seen"] = True
        order = await load()
        order.lines.clear()
        return [found, message, order.lines, (await echo(1)), run.current().output_of("echo")]

    recording = play(flow, messages=[("box", {"a": 1})])
    assert recording.value == [{"items": [1]}, {"a": 1, "seen": True}, [], 1, {"items": [1, 2]}]
    assert recording.journal[0].value == {"items": [1, 2]}


def test_what_the_body_does_to_its_input_the_run_does_not_see() -> None:
    @workflow
    async def flow(order: dict[str, Any]) -> list[Any]:
        order["lines"].append(2)
        await echo()
        return [order, run.current().input[0][0]]

    assert play(flow, {"lines": [1]}).value == [{"lines": [1, 2]}, {"lines": [1]}]


def test_what_the_body_does_to_the_context_the_journal_does_not_see() -> None:
    @workflow
    async def flow() -> Any:
        await echo()
        run.current().context["found"].append(1)
        return run.current().context["found"]

    execution = Player(flow, max_entries=0).play().execution
    found = {"found": [0]}
    entry = Entry(id="echo", kind=EntryKind.STEP, at=EPOCH, fence=1, context=found)
    execution.apply(entry)
    assert isinstance(execution.outcome, Returned)
    assert found == {"found": [0]}


def test_a_steps_context_is_seen_at_the_same_point_on_replay() -> None:
    @workflow
    async def flow() -> list[Any]:
        seen = [dict(run.current().context)]
        await echo()
        seen.append(dict(run.current().context))
        run.set_context(b=2)
        await echo()
        return [*seen, dict(run.current().context)]

    def entry(id_: str, context: Any) -> Entry:
        return Entry(id=id_, kind=EntryKind.STEP, at=EPOCH, fence=1, context=context)

    journal = [entry("echo", {"a": 1}), entry("echo#2", {"a": 3})]
    for _ in range(2):
        execution = Execution(make_run(flow), flow, limit=LIMIT, recorded=journal)
        execution.start()
        execution.replay(journal)
        assert isinstance(execution.outcome, Returned)
        assert execution.outcome.value == [{}, {"a": 1}, {"a": 3, "b": 2}]


def test_context_that_cannot_be_stored_is_refused_where_it_is_set() -> None:
    @workflow
    async def flow() -> None:
        run.set_context(value=object())

    assert isinstance(play(flow).error, ValidationError)


@pytest.mark.parametrize("kind", ["key", "value"])
def test_a_caught_error_has_its_type_on_replay_and_takes_the_same_branch(kind: str) -> None:
    @workflow
    async def flow() -> list[Any]:
        try:
            await fail(kind)
        except KeyError:
            return ["key", await echo(None)]
        except ValueError:
            return ["value", await echo(None)]
        return []

    recording = play(flow)
    assert recording.value == [kind, None]
    assert recording.ids == ["fail", "echo"]


def test_an_error_group_of_a_task_group_keeps_its_parts() -> None:
    import asyncio

    @workflow
    async def flow() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail("key"))
            group.create_task(echo(1))
            group.create_task(fail("value"))

    recording = play(flow, first=["echo", "fail"])
    error = recording.error
    assert isinstance(error, ExceptionGroup)
    assert [type(part) for part in error.exceptions] == [KeyError]
    assert recording.execution.step_errors[0][0] is error.exceptions[0]


@workflow
async def dice() -> list[Any]:
    first = [run.random(), str(run.uuid4()), run.now().isoformat()]
    await run.sleep(60)
    return [*first, run.random(), str(run.uuid4()), run.now().isoformat()]


def test_random_values_and_times_are_the_same_on_replay_and_differ_between_runs() -> None:
    one, other = play(dice, run_id="one").value, play(dice, run_id="other").value
    assert {*one[:2], *one[3:5]}.isdisjoint({*other[:2], *other[3:5]})
    assert uuid.UUID(one[1]).version == 4
    assert one[2] == EPOCH.isoformat()


def test_output_of_is_the_recorded_one() -> None:
    @workflow
    async def flow() -> list[Any]:
        await load()
        await echo(1)
        await echo(2)
        found = run.current().output_of
        return [found(load).lines, found("load").id, found(echo), found("echo#2")]

    assert play(flow).value == [[1, 2], "o", 1, 2]


def test_output_of_a_step_that_did_not_end_is_an_error() -> None:
    @workflow
    async def flow() -> None:
        run.current().output_of("echo")

    assert isinstance(play(flow).error, StepNotFound)


def test_current_tells_the_facts_of_the_run() -> None:
    @workflow(name="named", version="2.1")
    async def flow(value: int) -> list[Any]:
        now = run.current()
        before = now.replaying
        await echo()
        facts = [now.run_id, now.workflow, now.version, now.input, now.step_id, now.attempt]
        return [*facts, dict(now.meta), before and not now.replaying]

    recording = Player(flow, 3).play()
    assert recording.value == ["run-1", "named", "2.1", ((3,), {}), None, 0, {}, False]
    again = replay(recording, upto=0)
    again.execution.apply(recording.journal[0])
    with pytest.raises(InvalidState):
        run.current()


def test_what_belongs_in_a_step_is_refused_in_a_body() -> None:
    @workflow
    async def flow() -> list[str]:
        refused = []
        for ask in (run.heartbeat, lambda: run.current().idempotency_key):
            try:
                ask()
            except InvalidState as error:
                refused.append(str(error))
        return refused

    assert len(play(flow).value) == 2


def test_a_log_line_of_the_body_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    @workflow
    async def flow() -> None:
        run.logger.warning("begun")
        await echo()
        run.logger.warning("half")
        await echo()
        run.logger.warning("ended")

    recording = Player(flow).play()
    replay(recording)
    assert [record.getMessage() for record in caplog.records] == ["begun", "half", "ended"]
    assert {record.run_id for record in caplog.records} == {"run-1"}  # type: ignore[attr-defined]
    caplog.clear()
    execution = replay(recording, upto=1).execution
    execution.apply(recording.journal[1])
    assert [record.getMessage() for record in caplog.records] == ["ended"]


def test_an_input_that_no_longer_fits_is_an_error_at_the_start() -> None:
    @workflow(name="flow")
    async def flow(value: int) -> None: ...

    @workflow(name="flow")
    async def changed(value: dict[str, int]) -> None: ...

    with pytest.raises(ValidationError, match="'run-1'"):
        Execution(make_run(flow, 1), changed, limit=LIMIT).start()


def test_a_message_of_the_wrong_type_raises_in_the_receive_and_is_taken() -> None:
    @workflow
    async def flow() -> list[Any]:
        try:
            await run.receive("box", type=int)
        except ValidationError:
            return ["refused", await run.receive("box", type=int)]
        return []

    assert play(flow, messages=[("box", "text"), ("box", 2)]).value == ["refused", 2]


def test_a_slot_shows_what_is_asked() -> None:
    @workflow
    async def flow() -> None:
        await run.wait("Approve?", {"total": 3}, name="boss", type=bool, timeout="1h")

    execution = Player(flow, max_entries=0).play().execution
    command = execution.open["wait:boss"]
    assert isinstance(command, SlotCommand)
    slot = msgspec.to_builtins(command.slot)
    assert (slot["reason"], slot["data"], slot["name"]) == ("Approve?", {"total": 3}, "boss")
    assert command.slot.deadline is not None
    assert (command.slot.deadline - EPOCH).total_seconds() == 3600

"""asyncio as it is, in a body: everything is numbered when it is asked for, and replays alike."""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import QueueEmpty
from datetime import timedelta
from typing import Any

import pytest
from replay_player import EPOCH, Player, assert_replays, describe, play, replay, step, workflow

from streamline import context as run
from streamline.replay import Failed, Returned, TimerCommand

SEEDS = range(12)


@step
def echo(value: Any) -> Any:
    return value


@step
def charge(value: int) -> int:
    return value * 10


@step
def ship(value: int) -> int:
    return value + 1


@step
def fail(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize("seed", SEEDS)
def test_gathered_branches_get_their_own_results(seed: int) -> None:
    async def branch(number: int) -> int:
        shipped: int = await ship(await charge(number))
        return shipped

    @workflow
    async def flow() -> list[int]:
        return await asyncio.gather(*(branch(number) for number in range(5)))

    recording = play(flow, seed=seed)
    assert recording.value == [1, 11, 21, 31, 41]


@pytest.mark.parametrize("seed", SEEDS)
def test_ids_are_given_at_the_call_and_not_at_the_end(seed: int) -> None:
    @workflow
    async def flow() -> list[Any]:
        late, early = charge(1), charge(2)
        first = asyncio.create_task(early)
        return [await late, await first]

    recording = play(flow, seed=seed)
    assert recording.value == [10, 20]
    assert sorted(recording.ids) == ["charge", "charge#2"]
    assert {e.id: e.value for e in recording.journal} == {"charge": 10, "charge#2": 20}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_task_group_runs_its_tasks_and_its_error_is_a_group(seed: int) -> None:
    @workflow
    async def flow() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail("one"))
            group.create_task(asyncio.sleep(3600))
            group.create_task(fail("two"))

    recording = play(flow, seed=seed)
    assert isinstance(recording.error, ExceptionGroup)
    assert all(isinstance(part, ValueError) for part in recording.error.exceptions)
    assert not recording.execution.open


@pytest.mark.parametrize("seed", SEEDS)
def test_cleanups_of_an_aborted_task_group_come_in_one_order(seed: int) -> None:
    async def branch(number: int) -> None:
        try:
            await charge(number)
        finally:
            await echo(number)

    @workflow
    async def flow() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(branch(number))
            await fail("now")

    play(flow, seed=seed, first=["fail"])


def test_a_timeout_withdraws_what_it_interrupts() -> None:
    @workflow
    async def flow() -> str:
        try:
            async with asyncio.timeout(60):
                await charge(1)
        except TimeoutError:
            return "late"
        return "in time"

    late = play(flow, first=["timeout"])
    assert late.value == "late"
    assert late.turns[-1].withdrawn == ("charge",)
    in_time = play(flow, first=["charge"])
    assert in_time.value == "in time"
    assert in_time.turns[-1].withdrawn == ("timeout",)


def test_wait_for_gives_the_result_or_withdraws_the_step() -> None:
    @workflow
    async def flow() -> Any:
        try:
            return await asyncio.wait_for(charge(1), 60)
        except TimeoutError:
            return await asyncio.wait_for(charge(2), None)

    assert play(flow, first=["charge"]).value == 10
    late = play(flow, first=["timeout"])
    assert late.value == 20
    assert late.turns[1].withdrawn == ("charge",)


def test_a_cancelled_sleep_has_no_timer() -> None:
    @workflow
    async def flow() -> None:
        task = asyncio.create_task(asyncio.sleep(3600))
        await charge(1)
        task.cancel()
        await ship(1)

    recording = play(flow, first=["charge"])
    assert recording.turns[1].withdrawn == ("sleep",)
    assert recording.turns[1].open == ("ship",)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_race_has_the_same_winner_on_replay(seed: int) -> None:
    @workflow
    async def flow() -> list[Any]:
        racers = [asyncio.create_task(charge(number)) for number in range(8)]
        done, pending = await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)
        for loser in pending:
            loser.cancel()
        rest = await asyncio.gather(*pending, return_exceptions=True)
        return [[task.result() for task in done], len(rest)]

    recording = play(flow, seed=seed)
    assert recording.value == [[recording.journal[0].value], 7]
    assert len(recording.turns[1].withdrawn) == 7


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sets_of_wait_iterate_alike_on_every_replay(seed: int) -> None:
    @workflow
    async def flow() -> list[Any]:
        order = []
        racers = {asyncio.create_task(charge(n), name=f"n{n}") for n in range(30)}
        while racers:
            _, racers = await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)
            order += [task.get_name() for task in racers]
        return order

    play(flow, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_gatherings_in_a_set_iterate_alike_on_every_replay(seed: int) -> None:
    @workflow
    async def flow() -> None:
        gatherings = [asyncio.gather(charge(n), ship(n)) for n in range(12)]
        _, pending = await asyncio.wait(gatherings, return_when=asyncio.FIRST_COMPLETED)
        for gathering in pending:
            gathering.cancel()

    play(flow, seed=seed)


def test_all_tasks_are_in_one_order() -> None:
    async def branch(number: int) -> None:
        try:
            await charge(number)
        finally:
            await echo(number)

    @workflow
    async def flow() -> list[str]:
        tasks = [asyncio.create_task(branch(number)) for number in range(20)]
        await ship(1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait(tasks)
        return [task.get_name() for task in tasks]

    # Other loops' tasks lie in asyncio's one set, too.
    others = [Player(flow, run_id=f"run-{n}", max_entries=3).play() for n in range(10)]
    recording = play(flow, first=["ship"])
    assert recording.value == [f"task-{n}" for n in range(1, 21)]
    for other in others:
        other.execution.evict()


@pytest.mark.parametrize("seed", SEEDS)
def test_as_completed_starts_coroutines_in_the_order_given(seed: int) -> None:
    async def branch(number: int) -> int:
        charged: int = await charge(number)
        return charged

    @workflow
    async def flow() -> list[int]:
        return [await done for done in asyncio.as_completed([branch(n) for n in range(20)])]

    recording = play(flow, seed=seed)
    assert sorted(recording.value) == [n * 10 for n in range(20)]
    assert recording.value == [entry.value for entry in recording.journal]


def test_as_completed_takes_one_coroutine_once() -> None:
    @workflow
    async def flow() -> list[int]:
        same = charge(1)
        return [await done for done in asyncio.as_completed([same, same])]

    assert play(flow).value == [10]


def test_as_completed_keeps_its_timeout() -> None:
    @workflow
    async def flow() -> str:
        try:
            for done in asyncio.as_completed([charge(1), charge(2)], timeout=5):
                await done
        except TimeoutError:
            return "late"
        return "in time"

    assert play(flow, first=["charge", "timeout"]).value == "late"


def test_outside_a_body_the_ordered_functions_are_asyncios() -> None:
    async def value(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def plainly() -> tuple[Any, ...]:
        names = {task.get_name() for task in asyncio.all_tasks()}
        gathered: Any = asyncio.gather(value(1), value(2))
        both: Any = await asyncio.wait([gathered, asyncio.ensure_future(value(3))])
        return names, len(both[0]), [await d for d in asyncio.as_completed({value(4)})]

    names, count, completed = asyncio.run(plainly())
    assert (len(names), count, completed) == (1, 2, [4])


def test_a_shielded_step_outlives_the_cancel_of_its_caller() -> None:
    @workflow
    async def flow() -> Any:
        inner = asyncio.create_task(charge(1))
        try:
            async with asyncio.timeout(1):
                await asyncio.shield(inner)
        except TimeoutError:
            pass
        return await inner

    recording = play(flow, first=["timeout", "charge"])
    assert recording.value == 10
    assert recording.turns[1].withdrawn == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_queue_hands_on_in_order(seed: int) -> None:
    @workflow
    async def flow() -> list[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue(2)
        seen = []

        async def produce(base: int) -> None:
            for number in range(3):
                await queue.put(await charge(base + number))

        async def consume() -> None:
            while True:
                seen.append(await echo(await queue.get()))
                queue.task_done()

        consumers = [asyncio.create_task(consume()) for _ in range(2)]
        await asyncio.gather(produce(1), produce(10))
        await queue.join()
        for consumer in consumers:
            consumer.cancel()
        with pytest.raises(QueueEmpty):
            queue.get_nowait()
        return seen

    assert sorted(play(flow, seed=seed).value) == [10, 20, 30, 100, 110, 120]


@pytest.mark.parametrize("seed", SEEDS)
def test_locks_semaphores_events_and_conditions_work(seed: int) -> None:
    @workflow
    async def flow() -> list[Any]:
        lock, event, condition = asyncio.Lock(), asyncio.Event(), asyncio.Condition()
        semaphore = asyncio.Semaphore(2)
        seen: list[Any] = []

        async def locked(number: int) -> None:
            async with semaphore, lock:
                before = len(seen)
                seen.append(await charge(number))
                assert len(seen) == before + 1
            if len(seen) == 4:
                event.set()
            async with condition:
                condition.notify_all()

        async def watcher() -> str:
            async with condition:
                await condition.wait_for(lambda: len(seen) == 4)
            return "all"

        watching = asyncio.create_task(watcher())
        tasks = [asyncio.create_task(locked(number)) for number in range(4)]
        await event.wait()
        await asyncio.gather(*tasks)
        return [await watching, *sorted(seen)]

    assert play(flow, seed=seed).value == ["all", 0, 10, 20, 30]


def test_eager_start_is_accepted_and_tasks_stay_lazy() -> None:
    @workflow
    async def flow() -> list[str]:
        seen = []

        async def task() -> None:
            seen.append("task")

        made = asyncio.get_running_loop().create_task(task(), eager_start=True)  # type: ignore[call-arg]
        seen.append("body")
        await made
        return seen

    assert play(flow).value == ["body", "task"]


def test_a_task_in_an_empty_context_still_calls_steps_durably() -> None:
    @workflow
    async def flow() -> Any:
        context = contextvars.Context()
        first = asyncio.create_task(charge(1), context=context)

        async def nested() -> Any:
            return await asyncio.create_task(charge(2), context=context)

        second = asyncio.create_task(nested(), context=context)
        return [await first, await second]

    recording = play(flow)
    assert recording.value == [10, 20]
    assert recording.ids == ["charge", "charge#2"]


def test_a_body_sees_no_context_variable_of_whoever_drives_it() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    @workflow
    async def flow() -> str:
        return variable.get()

    variable.set("the driver's")
    assert play(flow).value == "none"


def test_a_background_task_that_nobody_holds_goes_on() -> None:
    @workflow
    async def flow() -> list[Any]:
        seen: list[Any] = []

        async def background() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await echo("collected")

        asyncio.create_task(background())  # noqa: RUF006
        for number in range(3):
            seen.append(await charge(number))
            import gc

            gc.collect()
        return seen

    assert play(flow).ids == ["charge", "charge#2", "charge#3"]


def test_an_async_generator_left_behind_is_closed_at_the_same_point() -> None:
    @workflow
    async def flow() -> Any:
        async def numbers() -> Any:
            try:
                for number in range(10):
                    yield await charge(number)
            finally:
                await echo("closed")

        async for number in numbers():
            if number == 10:
                break
        return await ship(5)

    recording = play(flow)
    assert recording.value == 6
    assert "echo" in recording.ids


async def test_an_async_generator_is_not_made_known_to_the_outer_loop() -> None:
    @workflow
    async def flow() -> Any:
        async def numbers() -> Any:
            yield 1
            yield 2

        held = numbers()
        await anext(held)
        await charge(1)
        return await anext(held)

    loop: Any = asyncio.get_running_loop()
    before = len(loop._asyncgens)
    recording = Player(flow, max_entries=0).play()
    assert len(loop._asyncgens) == before
    recording.execution.evict()


async def test_a_body_is_driven_from_inside_a_task_of_another_loop() -> None:
    @workflow
    async def flow() -> list[Any]:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            tasks = [group.create_task(charge(number)) for number in range(3)]
        main = asyncio.current_task()
        assert main is not None
        return [main.get_name(), *(task.result() for task in tasks)]

    outer = asyncio.current_task()
    recording = play(flow, first=["charge", "charge#2", "charge#3"])
    assert recording.value == ["main", 0, 10, 20]
    assert asyncio.current_task() is outer
    assert asyncio.get_running_loop() is not None
    async with asyncio.timeout(5):
        await asyncio.sleep(0)


def test_time_is_the_time_of_the_entry() -> None:
    @workflow
    async def flow() -> list[float]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.sleep(90)
        return [begun, loop.time() - begun, (run.now() - EPOCH).total_seconds()]

    begun, passed, now = play(flow).value
    assert begun == EPOCH.timestamp()
    assert 90 <= passed < 91
    assert 90 <= now < 91


def test_after_a_sleep_the_loop_is_never_before_its_end() -> None:
    @workflow
    async def flow(delay: float) -> int:
        loop = asyncio.get_running_loop()
        end, naps = loop.time() + delay, 0
        while loop.time() < end:
            await asyncio.sleep(end - loop.time())
            naps += 1
        return naps

    for microseconds in range(1, 3000, 37):
        assert play(flow, microseconds / 1e6, max_entries=5).value == 1


@pytest.mark.parametrize("delay", [float("inf"), 1e13])
def test_a_sleep_without_end_is_a_timer_that_can_be_stored(delay: float) -> None:
    @workflow
    async def flow() -> None:
        await asyncio.sleep(delay)

    recording = Player(flow, max_entries=0).play()
    (timer,) = recording.execution.open.values()
    assert isinstance(timer, TimerCommand)
    assert timer.due.year == 9999
    recording.execution.evict()


def test_months_of_sleep_are_due_to_the_millisecond() -> None:
    @workflow
    async def flow() -> None:
        await run.sleep(timedelta(days=200))
        await run.sleep("1h")
        await run.sleep_until(EPOCH + timedelta(days=300))
        await run.sleep_until(EPOCH)

    recording = Player(flow, seed=1).play()
    assert isinstance(recording.outcome, Returned)
    assert recording.ids == ["sleep", "sleep#2", "sleep#3"]
    assert recording.journal[-1].at - EPOCH >= timedelta(days=300)
    assert_replays(recording)


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_named_like_timers_share_no_id_with_them(seed: int) -> None:
    def named(name: str) -> Any:
        def value() -> str:
            return name

        return step(name=name)(value)

    names = ["sleep", "timeout", "cancel", "deadline", "main", "wait", "receive:orders"]
    steps = [named(name) for name in names]

    @workflow(timeout="1d")
    async def flow() -> list[str]:
        found = [await made() for made in steps]
        await asyncio.sleep(1)
        async with asyncio.timeout(10):
            await steps[0]()
        return [*found, await run.receive("orders"), await run.wait("please")]

    messages = [("orders", "got"), ("wait#2", "waited")]
    recording = Player(flow, seed=seed, messages=messages).play()
    assert_replays(recording)
    if not isinstance(recording.outcome, Failed):
        assert recording.value == [*names, "got", "waited"]
    assert len(recording.ids) == len(set(recording.ids))


def test_a_step_named_deadline_keeps_a_run_alive() -> None:
    @step
    def deadline() -> int:
        return 1

    @workflow
    async def flow() -> int:
        value: int = await deadline()
        return value

    assert play(flow).value == 1


def test_messages_go_to_receives_in_order() -> None:
    @workflow
    async def flow() -> list[Any]:
        got = [await run.receive("orders", type=int) for _ in range(2)]
        async for message in run.channel("orders", type=int):
            got.append(message)
            if message == 4:
                break
        return got

    recording = play(flow, messages=[("orders", n) for n in range(1, 5)])
    assert recording.value == [1, 2, 3, 4]
    assert recording.ids[0] == "receive:orders"


def test_a_receive_and_its_timeout_in_one_moment_are_one_of_them() -> None:
    @workflow
    async def flow() -> Any:
        try:
            return await run.receive("orders", timeout=1)
        except TimeoutError:
            return "late"

    for seed in range(20):
        recording = play(flow, seed=seed, messages=[("orders", "message")])
        wanted = "late" if recording.journal[0].id == "timeout" else "message"
        assert recording.value == wanted
        assert not recording.execution.open


def test_a_replay_of_each_beginning_goes_on_as_the_run_did() -> None:
    @workflow
    async def flow() -> list[Any]:
        found = [*await asyncio.gather(charge(1), ship(2), run.receive("orders"))]
        async with asyncio.timeout(10):
            found.append(await charge(3))
        return found

    recording = play(flow, messages=[("orders", 7)], first=["charge", "ship"])
    for upto in range(len(recording.journal)):
        again = replay(recording, upto=upto)
        assert again.turns == recording.turns[: upto + 1]
        for entry, turn in zip(recording.journal[upto:], recording.turns[upto + 1 :], strict=True):
            again.execution.apply(entry)
            assert {id_ for _, id_ in turn.issued} <= {
                c.id for c in again.execution.open.take_issued()
            }
        assert describe(again.execution.outcome) == describe(recording.outcome)

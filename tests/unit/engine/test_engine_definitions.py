"""What definitions are: FEATURES D1 to D8."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from dataclasses import dataclass

import pytest
from engine_support import SECONDS, until_status

from streamline import (
    InvalidState,
    NonRetryable,
    Registry,
    RetryAfter,
    RunFailed,
    Status,
    ValidationError,
    deprecate_patch,
    patched,
    sleep,
    step,
    workflow,
)
from streamline.definitions import default_registry
from streamline.errors import DefinitionConflict


@dataclass
class Order:
    id: str
    total: int


async def test_bare_and_with_keywords_definitions_work_alike(world):
    """D1"""

    @world.step
    async def bare(x: int) -> int:
        return x + 1

    @world.step(name="renamed", attempts=5)
    async def keyed(x: int) -> int:
        return x * 2

    @world.workflow(name="flow", version="2.1.0")
    async def flow(x: int) -> int:
        return await keyed(await bare(x))

    handle = await flow.start(3)
    assert await handle.result(SECONDS) == 8
    run = await handle.get()
    assert (run.workflow, run.version) == ("flow", "2.1.0")
    assert [entry.id for entry in run.journal] == [bare.name, "renamed"]


async def test_decorators_without_parentheses_use_the_global_registry():
    """D1, D3"""

    @step
    async def bare_step() -> int:
        return 1

    @workflow
    async def bare_flow() -> int:
        return 1

    assert default_registry.find(bare_flow.name) is bare_flow
    assert bare_step.name.endswith("bare_step")


async def test_names_default_to_the_qualified_name_without_the_module(world):
    """D1"""

    @world.workflow
    async def named() -> None: ...

    assert named.name == named.fn.__qualname__
    assert "test_engine_definitions" not in named.name


async def test_a_plain_def_step_runs_in_a_thread(world):
    """D1"""
    seen = []

    @world.step
    def blocking(x: int) -> int:
        seen.append(threading.current_thread())
        return x + 1

    @world.workflow
    async def flow() -> int:
        return await blocking(1)

    assert await (await flow.start()).result(SECONDS) == 2
    assert seen[0] is not threading.main_thread()


async def test_values_cross_a_step_as_its_annotations_say(world):
    """D2: a dataclass in, a dataclass out, on the first pass too."""

    @world.step
    async def reprice(order: Order, by: int) -> Order:
        assert isinstance(order, Order)
        return Order(order.id, order.total + by)

    @world.workflow
    async def flow(order: Order) -> Order:
        priced = await reprice(order, by=2)
        assert isinstance(priced, Order)
        return priced

    assert await (await flow.start(Order("o", 1))).result(SECONDS) == Order("o", 3)


async def test_an_unannotated_result_is_plain_data_on_the_first_pass_too(world):
    """D2"""

    @world.step
    async def pair():
        return (1, 2)

    @world.workflow
    async def flow():
        value = await pair()
        await sleep("1d")
        return [type(value).__name__, value]

    assert await world.crash_everywhere(flow) == ["list", [1, 2]]


def test_two_definitions_of_one_name_name_both_places():
    """D3"""
    registry = Registry()

    @workflow(name="same", registry=registry)
    async def first() -> None: ...

    with pytest.raises(DefinitionConflict) as caught:

        @workflow(name="same", registry=registry)
        async def second() -> None: ...

    assert str(caught.value).count("test_engine_definitions.py") == 2
    assert "first" in str(caught.value)
    assert "second" in str(caught.value)


def test_another_version_of_a_name_is_no_conflict():
    """D3, D8"""
    registry = Registry()

    @workflow(name="same", version="1.9.0", registry=registry)
    async def first() -> None: ...

    @workflow(name="same", version="1.10.0", registry=registry)
    async def second() -> None: ...

    assert registry.find("same") is second
    assert registry.find("same", "1.9.0") is first


def test_the_same_function_defined_again_replaces_itself():
    """D3: a notebook's cell run twice, or a reload."""
    registry = Registry()
    made = []
    for _ in range(2):

        @workflow(registry=registry)
        async def flow() -> None: ...

        made.append(flow)

    assert registry.find(made[0].name) is made[1]


@pytest.mark.parametrize("name", ["", "a b", "x" * 101, "ä", "a/b", "a$b", "a\n"])
def test_unacceptable_names_are_refused(name):
    """D3"""
    with pytest.raises(ValidationError):
        step(name=name or " ", registry=Registry())(lambda: None)
    with pytest.raises(ValidationError):

        @workflow(name=name or " ", registry=Registry())
        async def flow() -> None: ...


@pytest.mark.parametrize("name", ["a", "A.b:c-d_e<f>9", "x" * 100])
def test_acceptable_names_are_taken(name):
    """D3"""

    @workflow(name=name, registry=Registry())
    async def flow() -> None: ...

    assert flow.name == name


def test_a_workflow_must_be_async():
    """D1"""
    with pytest.raises(ValidationError, match="async def"):
        workflow(registry=Registry())(lambda: None)


def test_unacceptable_keywords_are_refused_at_decoration():
    """D6"""
    with pytest.raises(ValidationError, match="attempt"):
        step(attempts=0)
    with pytest.raises(ValueError, match="negative"):
        step(timeout=-1)
    with pytest.raises(ValueError, match="duration"):

        @workflow(timeout="soon", registry=Registry())
        async def flow() -> None: ...


async def test_a_step_outside_a_run_is_the_plain_function():
    """D4"""
    registry = Registry()

    @step(registry=registry)
    async def double(x: int) -> int:
        return x * 2

    @step(registry=registry)
    def triple(x: int) -> int:
        return x * 3

    assert await double(2) == 4
    assert await triple(2) == 6


async def test_a_step_within_a_step_runs_inline(world):
    """D4"""

    @world.step
    async def inner(x: int) -> int:
        return x + 1

    @world.step
    async def outer(x: int) -> int:
        return await inner(x) * 10

    @world.workflow
    async def flow() -> int:
        return await outer(1)

    handle = await flow.start()
    assert await handle.result(SECONDS) == 20
    assert [entry.id for entry in (await handle.get()).journal] == [outer.name]


async def test_a_workflow_outside_a_run_starts_and_waits(world):
    """D4"""

    @world.workflow
    async def flow(x: int) -> int:
        await sleep("1h")
        return x + 1

    assert await flow(1) == 2


async def test_workflow_timeout_cancels_the_body_and_fails_the_run(world):
    """D5"""
    cleaned = []

    @world.step
    async def clean() -> None:
        cleaned.append(1)

    @world.workflow(timeout="1h")
    async def flow() -> None:
        try:
            await sleep("2h")
        finally:
            await clean()

    handle = await flow.start()
    with pytest.raises(RunFailed, match="took longer than") as caught:
        await handle.result(SECONDS)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert cleaned == [1]


async def test_step_defaults_of_the_workflow_apply_to_steps_that_say_nothing(world):
    """D5"""
    calls = {"silent": 0, "explicit": 0}

    @world.step
    async def silent() -> None:
        calls["silent"] += 1
        raise OSError

    @world.step(attempts=2)
    async def explicit() -> None:
        calls["explicit"] += 1
        raise OSError

    @world.workflow(attempts=4)
    async def flow() -> None:
        for each in (silent, explicit):
            with contextlib.suppress(OSError):
                await each()

    await (await flow.start()).result(SECONDS)
    assert calls == {"silent": 4, "explicit": 2}


async def test_on_failure_runs_durably_and_the_run_still_fails(world):
    """D5"""
    told = []

    @world.step
    async def tell(what: str) -> None:
        told.append(what)

    async def on_failure(error: Exception) -> None:
        await sleep("1h")
        await tell(str(error))

    @world.workflow(on_failure=on_failure)
    async def flow() -> None:
        raise ValueError("no")

    with pytest.raises(RunFailed, match="no"):
        await (await flow.start()).result(SECONDS)
    assert told == ["no"]


async def test_retention_and_expire_after_set_the_deletion(world):
    """D5, H2"""

    @world.workflow(retention="10d")
    async def flow() -> None: ...

    kept = await (await flow.start()).wait(SECONDS)
    own = await (await flow.options(expire_after="1d").start()).wait(SECONDS)
    assert (kept.expire_at - kept.ended_at).days == 10
    assert (own.expire_at - own.ended_at).days == 1


async def test_three_attempts_by_default_and_the_waits_grow(world):
    """D6"""
    at = []

    @world.step
    async def failing() -> None:
        at.append(world.clock.now())
        raise OSError("no")

    @world.workflow
    async def flow() -> None:
        await failing()

    with pytest.raises(RunFailed):
        await (await flow.start()).result(SECONDS)
    first, second = ((b - a).total_seconds() for a, b in itertools.pairwise(at))
    assert len(at) == 3
    assert 0.69 <= first <= 1.32
    assert 1.39 <= second <= 2.62


async def test_a_non_retryable_error_ends_the_retries(world):
    """D7, behaviour 16"""
    calls = []

    class Fatal(Exception):
        retryable = False

    @world.step
    async def failing(kind: str) -> None:
        calls.append(kind)
        raise NonRetryable("never") if kind == "marked" else Fatal("never")

    @world.workflow
    async def flow(kind: str) -> None:
        await failing(kind)

    for kind in ("marked", "own"):
        with pytest.raises(RunFailed, match="never") as caught:
            await (await flow.start(kind)).result(SECONDS)
        assert caught.value.error_code == "STEP_FAILED"
    assert calls == ["marked", "own"]


async def test_retry_after_sets_the_next_wait(world):
    """D7, behaviour 16"""
    at = []

    @world.step
    async def busy() -> int:
        at.append(world.clock.now())
        if len(at) == 1:
            raise RetryAfter("2h", "come back later")
        return 1

    @world.workflow
    async def flow() -> int:
        return await busy()

    assert await (await flow.start()).result(SECONDS) == 1
    assert 7200 <= (at[1] - at[0]).total_seconds() < 7201


async def test_patched_is_true_for_new_runs_and_false_for_runs_that_passed(world):
    """D8"""
    seen = []

    @world.step
    async def old() -> str:
        return "old"

    @world.step
    async def new() -> str:
        return "new"

    def define(changed: bool):
        @world.workflow(name="flow")
        async def flow() -> list[str]:
            first = await (new() if changed and patched("swap") else old())
            await sleep("1d")
            second = "patched" if changed and patched("swap") else "not"
            seen.append(second)
            return [first, second]

        return flow

    before = await define(False).start()
    await until_status(before, Status.WAITING)
    after = define(True)
    await world.crash()  # the new process has only the new code
    assert await before.result(SECONDS) == ["old", "not"]
    assert await world.crash_everywhere(after) == ["new", "patched"]


async def test_deprecate_patch_stands_in_for_patched(world):
    """D8"""

    @world.step
    async def work() -> int:
        return 1

    def define(deprecated: bool):
        @world.workflow(name="flow")
        async def flow() -> int:
            if deprecated:
                deprecate_patch("swap")
            else:
                assert patched("swap")
            await sleep("1d")
            return await work()

        return flow

    handle = await define(False).start()
    await until_status(handle, Status.WAITING)
    define(True)
    await world.crash()
    assert await handle.result(SECONDS) == 1


async def test_a_run_goes_on_with_the_newest_version(world):
    """D8"""

    @world.workflow(name="flow", version="1.0.0")
    async def one() -> str:
        await sleep("1d")
        return "one"

    handle = await one.start()
    await until_status(handle, Status.WAITING)

    @world.workflow(name="flow", version="1.1.0")
    async def two() -> str:
        await sleep("1d")
        return "two"

    await world.crash()
    assert await handle.result(SECONDS) == "two"
    assert (await handle.get()).version == "1.0.0"


async def test_a_pinned_version_waits_for_a_worker_that_has_it(world):
    """D8: left queued, not failed, where none has it."""

    @workflow(name="flow", version="7", pin=True, registry=Registry())
    async def elsewhere() -> str:
        return "seven"

    @world.workflow(name="flow", version="8")
    async def newer() -> str:
        return "eight"

    handle = await elsewhere.start()
    await world.settle()
    assert await handle.status() is Status.QUEUED
    having = Registry()
    having.add_workflow(elsewhere)
    await world.another_worker(having)
    assert await handle.result(SECONDS) == "seven"


def test_starts_are_coroutine_functions_to_frameworks():
    """Starlette, for one, calls what isn't in a thread, and awaits nothing."""

    @workflow(registry=Registry())
    async def flow() -> None: ...

    launch = flow.options(id="o-1")
    for awaited in (flow.start, launch.start, flow.__call__, launch.__call__):
        assert asyncio.iscoroutinefunction(awaited)


async def test_arguments_that_do_not_fit_are_refused_at_the_start(world):
    """D2: nothing is stored."""

    @world.workflow
    async def flow(n: int, *, label: str = "x") -> int:
        return n

    for args, kwargs in [(("one",), {}), ((), {}), ((1, 2), {}), ((1,), {"other": 1})]:
        with pytest.raises(ValidationError):
            await flow.start(*args, **kwargs)
    assert len(world._shared) == 0


async def test_a_start_without_an_engine_says_what_to_do():
    """G2"""

    @workflow(registry=Registry())
    async def flow() -> None: ...

    with pytest.raises(InvalidState, match="no engine is started"):
        await flow.start()


async def test_gather_of_plain_steps_works_in_unit_tests():
    """D4"""

    @step(registry=Registry())
    async def double(x: int) -> int:
        return x * 2

    assert await asyncio.gather(double(1), double(2)) == [2, 4]

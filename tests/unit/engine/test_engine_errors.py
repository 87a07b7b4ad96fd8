"""Errors and recovery from them: FEATURES E1 to E3; BEHAVIOURS 11, 12, 15, 16, 18."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
import tenacity
from engine_support import SECONDS, kinds_of, steps_of, until_status

from streamline import (
    ErrorCode,
    MaxRetriesExceeded,
    NonRetryable,
    PayloadTooLarge,
    Registry,
    RunCancelled,
    RunFailed,
    Status,
    StepFailed,
    StepTimeout,
    Streamline,
    ValidationError,
    current,
    receive,
    sleep,
    step,
    workflow,
)
from streamline.store.encoding import to_document
from streamline.store.memory import MemoryStore


async def failed(handle):
    """Return the error of `result()` and the stored run."""
    with pytest.raises(RunFailed) as caught:
        await handle.result(SECONDS)
    return caught.value, await handle.get()


# -- codes ------------------------------------------------------------------------------------


async def test_step_failed_names_run_step_and_cause(world):
    """E1: STEP_FAILED"""

    @world.step(name="charge")
    async def charge() -> None:
        raise NonRetryable("card declined")

    @world.workflow
    async def flow() -> None:
        await charge()

    error, run = await failed(await flow.start())
    assert error.error_code == run.error.code == "STEP_FAILED"
    assert run.id in str(error)
    assert "'charge'" in str(error)
    assert "card declined" in str(error)
    assert (run.status, run.error.step, run.output) == (Status.FAILED, "charge", None)
    assert run.ended_at is not None


async def test_max_retries_exceeded_after_the_last_of_several_attempts(world):
    """E1: MAX_RETRIES_EXCEEDED; behaviour 16: the errors of all attempts are visible."""
    at = []

    @world.step(name="charge", attempts=3)
    async def charge() -> None:
        at.append(world.clock.now())
        raise OSError(f"try {len(at)}")

    @world.workflow
    async def flow() -> None:
        await charge()

    error, run = await failed(await flow.start())
    assert error.error_code == "MAX_RETRIES_EXCEEDED"
    assert len(at) == 3
    assert [entry.error.message for entry in run.journal] == ["try 1", "try 2", "try 3"]
    assert [entry.attempt for entry in run.journal] == [1, 2, 3]
    assert run.ended_at == at[-1]  # no wait after the last


async def test_max_retries_exceeded_when_a_result_is_never_accepted(world):
    """E1, D6: tenacity's retry_if_result."""
    calls = []

    @world.step(name="poll", attempts=2, retry=tenacity.retry_if_result(lambda r: r < 5))
    async def poll() -> int:
        calls.append(1)
        return 1

    @world.workflow
    async def flow() -> None:
        await poll()

    error, run = await failed(await flow.start())
    assert error.error_code == "MAX_RETRIES_EXCEEDED"
    assert isinstance(error.__cause__, MaxRetriesExceeded)
    assert len(calls) == 2
    assert "poll" in run.error.message


async def test_step_timeout(world):
    """E1: STEP_TIMEOUT"""

    @world.step(name="slow", timeout=0.02, attempts=1)
    async def slow() -> None:
        await asyncio.sleep(60)

    @world.workflow
    async def flow() -> str:
        try:
            await slow()
        except TimeoutError as error:
            return type(error).__name__
        return ""

    assert await (await flow.start()).result(SECONDS) == "StepTimeout"

    @world.workflow
    async def uncaught() -> None:
        await slow()

    error, run = await failed(await uncaught.start())
    assert error.error_code == "STEP_TIMEOUT"
    assert isinstance(error.__cause__, StepTimeout)
    assert run.id in run.error.message
    assert "'slow'" in run.error.message
    assert "0.02 s" in run.error.message


async def test_workflow_failed_keeps_the_bodys_exception(world):
    """E1: WORKFLOW_FAILED"""

    @world.workflow
    async def flow() -> None:
        raise LookupError("nothing there")

    error, run = await failed(await flow.start())
    assert error.error_code == error.code == "WORKFLOW_FAILED"
    assert isinstance(error.__cause__, LookupError)
    assert run.error.step is None
    assert "LookupError" in run.error.traceback
    assert "nothing there" in run.error.traceback


async def test_a_result_that_can_not_be_stored_fails_clearly(world):
    """E1: VALIDATION_ERROR; behaviour 15: never a stuck run."""

    @world.step(name="handle")
    async def unstorable():
        return object()

    @world.workflow
    async def by_step():
        return await unstorable()

    @world.workflow
    async def by_body():
        return lambda: 1

    error, run = await failed(await by_step.start())
    assert error.error_code == "VALIDATION_ERROR"
    assert f"the result of step 'handle' of run '{run.id}'" in run.error.message
    assert len(run.journal) == 1  # it isn't tried again
    error, run = await failed(await by_body.start())
    assert error.error_code == "VALIDATION_ERROR"
    assert f"the result of run '{run.id}'" in run.error.message


async def test_a_result_that_does_not_fit_its_annotation_fails_at_the_step(world):
    """E1, behaviour 15: not in a replay."""

    @world.step(name="count")
    async def count() -> int:
        return "three"

    @world.workflow
    async def flow() -> str:
        try:
            await count()
        except ValidationError as error:
            return str(error)
        return ""

    message = await (await flow.start()).result(SECONDS)
    assert "'count'" in message


async def test_an_exception_that_can_not_be_stored_is_stored_as_far_as_possible(world):
    """Behaviour 15"""

    class Local(Exception):
        def __init__(self, a, b):
            super().__init__("local trouble")
            self.socket = object()

        def __reduce__(self):
            raise TypeError("not me")

    @world.step(name="step", attempts=1)
    async def bad() -> None:
        raise Local(1, object())

    @world.workflow
    async def flow() -> None:
        await bad()

    error, run = await failed(await flow.start())
    assert "local trouble" in str(error)
    assert "Local" in run.error.type
    assert isinstance(error.__cause__, Exception)


async def test_an_exception_whose_text_can_not_be_made_fails_the_run_all_the_same(world):
    """Behaviour 15"""

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("mute")

        __repr__ = __str__

    @world.step(attempts=1)
    async def bad() -> None:
        raise Mute

    @world.workflow
    async def flow() -> None:
        await bad()

    error, _ = await failed(await flow.start())
    assert error.error_code == "STEP_FAILED"


@pytest.mark.parametrize("leaves", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_what_is_no_exception_fails_the_step_and_not_the_worker(world, leaves):
    """Behaviour 15"""

    @world.step(attempts=1)
    async def bad() -> None:
        raise leaves

    @world.workflow
    async def flow() -> str:
        try:
            await bad()
        except StepFailed as error:
            return error.type_name.partition(":")[2]
        return ""

    assert await (await flow.start()).result(SECONDS) == type(leaves).__name__


async def test_a_step_that_raises_cancelled_error_by_itself_is_a_failed_step(world):
    """Behaviour 15: it isn't the run that was cancelled."""

    @world.step(attempts=2)
    async def bad() -> None:
        raise asyncio.CancelledError("inner")

    @world.workflow
    async def flow() -> None:
        await bad()

    error, run = await failed(await flow.start())
    assert run.status is Status.FAILED
    assert error.error_code == "MAX_RETRIES_EXCEEDED"


async def test_a_payload_that_is_too_large_is_refused_where_it_is_made(world):
    """E1: PAYLOAD_TOO_LARGE"""
    big = "x" * 400_000

    @world.step(name="download")
    async def download() -> str:
        return big

    @world.workflow
    async def flow(text: str) -> str:
        if text == "receive":
            await receive("box")
        return big if text == "return" else await download()

    limits = {"payload_limit": 300_000, "inline_limit": 1000}
    async with Streamline(store=MemoryStore(), registry=world.registry, **limits):
        with pytest.raises(PayloadTooLarge, match="the arguments of run"):
            await flow.start(big)
        waiting = await flow.start("receive")
        await until_status(waiting, Status.WAITING)
        with pytest.raises(PayloadTooLarge, match="the message to 'box'"):
            await waiting.send("box", big)
        for text, what in (("step", "result of step 'download'"), ("return", "result of run")):
            error, run = await failed(await flow.start(text))
            assert error.error_code == "PAYLOAD_TOO_LARGE"
            assert what in run.error.message
            assert run.id in run.error.message


@pytest.mark.parametrize(
    "limits", [{"payload_limit": 0}, {"payload_limit": 2**31}, {"inline_limit": 2**23}]
)
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(ValidationError, match=next(iter(limits))):
        Streamline(store=MemoryStore(), **limits)


async def test_many_results_that_do_not_fit_one_document_fail_the_run_clearly(world):
    """E1, promise 6: or are moved out of it; never a stuck run."""

    @world.step
    async def big(n: int) -> str:
        return "x" * 2_900_000

    @world.workflow
    async def flow() -> int:
        return len(await asyncio.gather(*(big(n) for n in range(8))))

    handle = await flow.start()
    assert await handle.result(SECONDS) == 8


async def test_workflow_cancelled_carries_its_code(world):
    """E1: WORKFLOW_CANCELLED"""

    @world.workflow
    async def flow() -> None:
        await receive("never")

    handle = await flow.start()
    await handle.cancel()
    with pytest.raises(RunCancelled) as caught:
        await handle.result(SECONDS)
    assert caught.value.code is ErrorCode.WORKFLOW_CANCELLED
    assert caught.value.run_id == handle.id
    assert (await handle.get()).error.code == "WORKFLOW_CANCELLED"


async def test_an_input_that_can_not_be_read_fails_the_run_at_once(world):
    """Behaviour 15: no endless retry."""

    @world.workflow(name="flow")
    async def flow(n: int) -> None: ...

    handle = await flow.options(delay="1h").start(1)

    @world.workflow(name="flow", version="2")
    async def changed(n: dict[str, int], other: str) -> None: ...

    error, run = await failed(handle)
    assert error.error_code == "VALIDATION_ERROR"
    assert run.id in run.error.message
    assert run.fence == 1


async def test_a_document_that_can_not_be_read_is_set_aside(world):
    """E1: DATA_CORRUPTION; the others go on."""

    @world.workflow
    async def flow(n: int) -> int:
        return n

    bad = await flow.options(delay="1h", id="bad").start(1)
    good = await flow.options(delay="1h", id="good").start(2)
    document = to_document(await world.run("bad"))
    world._shared.put(document | {"journal": "gone"})
    assert await good.result(SECONDS) == 2
    await world.settle()
    stored = world._shared.get("bad")
    assert stored["status"] == "failed"
    assert stored["error"]["code"] == "DATA_CORRUPTION"
    assert stored["journal"] == "gone"
    assert "due_at" not in stored
    with pytest.raises(Exception, match="'bad' can't be read") as caught:
        await bad.result(SECONDS)
    assert caught.value.code is ErrorCode.DATA_CORRUPTION


async def test_a_group_of_exceptions_fails_the_run_with_its_parts_readable(world):
    """Behaviour 18"""

    @world.step(attempts=1)
    async def bad(text: str) -> None:
        raise ValueError(text)

    @world.workflow
    async def flow() -> None:
        async def late(text):
            await asyncio.sleep(1)
            raise KeyError(text)

        async with asyncio.TaskGroup() as group:
            group.create_task(late("one"))
            group.create_task(late("two"))

    error, run = await failed(await flow.start())
    assert isinstance(error.__cause__, ExceptionGroup)
    assert [part.message for part in run.error.parts] in (["'one'"], ["'one'", "'two'"])


async def test_a_caught_step_error_is_the_same_type_on_replay(world):
    """Behaviour 11: and takes the same branch. A result of None replays as None."""
    types = []

    @world.step(attempts=1)
    async def bad() -> None:
        raise ConnectionRefusedError(111, "refused")

    @world.step
    async def nothing() -> None:
        return None

    @world.workflow
    async def flow() -> list[object]:
        try:
            await bad()
        except OSError as error:
            types.append((type(error), error.errno, str(error)))
        value = await nothing()
        await sleep("1d")
        return [value]

    assert await world.crash_everywhere(flow) == [None]
    assert set(types) == {(ConnectionRefusedError, 111, "[Errno 111] refused")}


async def test_a_step_error_raised_again_brings_the_steps_code(world):
    """E1"""

    @world.step(name="charge", attempts=2)
    async def charge() -> None:
        raise OSError("no")

    @world.workflow
    async def flow() -> None:
        try:
            await charge()
        except OSError as error:
            await sleep("1h")
            raise RuntimeError("could not charge") from error

    error, run = await failed(await flow.start())
    assert error.error_code == "WORKFLOW_FAILED"
    assert run.error.cause.message == "no"
    assert isinstance(error.__cause__.__cause__, OSError)


async def test_a_retry_strategy_that_raises_fails_the_step_and_hangs_nothing(world):
    """E1, behaviour 15"""

    @world.step(name="poll", retry=tenacity.retry_if_result(lambda r: r.missing))
    async def poll() -> int:
        return 1

    @world.workflow
    async def flow() -> int:
        return await poll()

    error, _ = await failed(await flow.start())
    assert isinstance(error.__cause__, AttributeError)
    assert error.step == "poll"


async def test_a_workflow_that_waits_for_nothing_fails_at_once(world):
    """E1: instead of hanging."""

    @world.workflow
    async def flow() -> None:
        await asyncio.Event().wait()

    _, run = await failed(await flow.start())
    assert "nothing can resolve" in run.error.message
    assert run.id in run.error.message


async def test_a_body_that_does_io_is_told_to_use_a_step(world):
    """E1"""

    @world.workflow
    async def flow() -> None:
        await asyncio.to_thread(print)

    _, run = await failed(await flow.start())
    assert "move this call into a @step" in run.error.message


# -- divergence -------------------------------------------------------------------------------


def versions(world):
    """A workflow whose code can be changed under its runs."""

    @world.step(name="charge")
    async def charge() -> int:
        return 1

    @world.step(name="refund")
    async def refund() -> int:
        return -1

    def deploy(first):
        @world.workflow(name="flow")
        async def flow() -> list[int]:
            value = await (charge() if first == "charge" else refund())
            await sleep("1d")
            return [value, await refund()]

        return flow

    return deploy


async def test_code_that_does_not_fit_pauses_the_run_and_a_fix_lets_it_go_on(world):
    """E2, NON_DETERMINISM; behaviour 12: no crash loop."""
    deploy = versions(world)
    handle = await deploy("charge").start()
    await until_status(handle, Status.WAITING)
    deploy("refund")
    await world.crash()
    await world.advance("1d")
    run = await handle.get()
    assert run.status is Status.PAUSED
    assert run.error.code == "NON_DETERMINISM"
    for fact in (run.id, "entry 0", "'charge'", "'refund'", "patched()", "unpause"):
        assert fact in run.error.message
    assert steps_of(run) == ["charge"]
    fence = run.fence
    await world.advance("10d")
    assert (await handle.get()).fence == fence
    assert world.names("workflow:paused") == ["workflow:paused"]
    deploy("charge")
    await handle.unpause()
    assert await handle.result(SECONDS) == [1, -1]
    assert (await handle.get()).error is None


async def test_unpause_without_a_fix_pauses_again(world):
    """E2"""
    deploy = versions(world)
    handle = await deploy("charge").start()
    await until_status(handle, Status.WAITING)
    deploy("refund")
    await world.crash()
    await world.advance("1d")
    await handle.unpause()
    await world.settle()
    run = await handle.get()
    assert (run.status, run.error.code) == (Status.PAUSED, "NON_DETERMINISM")
    assert steps_of(run) == ["charge"]


async def test_a_diverged_run_can_be_cancelled(world):
    """E2, C1, O5: and it is kept no longer than others."""
    deploy = versions(world)
    handle = await deploy("charge").options(expire_after="30d").start()
    await until_status(handle, Status.WAITING)
    deploy("refund")
    await world.crash()
    await world.advance("1d")
    await handle.cancel()
    run = await handle.wait(SECONDS)
    assert run.status is Status.CANCELLED
    assert run.expire_at == run.ended_at + timedelta(days=30)


async def test_a_changed_argument_list_is_no_divergence(world):
    """Behaviour 12: f(1) as f(a=1), a defaulted parameter added."""
    calls = []

    @world.step(name="work")
    async def work(a: int) -> int:
        calls.append(a)
        return a

    @world.workflow(name="flow")
    async def flow() -> int:
        value = await work(1)
        await sleep("1d")
        return value

    handle = await flow.start()
    await until_status(handle, Status.WAITING)

    @step(name="work", registry=Registry())
    async def changed(a: int, b: int = 2) -> int:
        calls.append(a)
        return a

    registry = Registry()

    @workflow(name="flow", registry=registry)
    async def rewritten() -> int:
        value = await changed(a=1)
        await sleep("1d")
        return value

    world.registry._workflows.update(registry._workflows)
    await world.crash()
    assert await handle.result(SECONDS) == 1
    assert calls == [1]


async def test_a_changed_kind_at_a_position_is_a_divergence(world):
    """Behaviour 12"""

    def deploy(sleeps):
        @world.workflow(name="flow")
        async def flow() -> None:
            await (sleep(1) if sleeps else receive("box"))
            await sleep("1d")

        return flow

    handle = await deploy(True).start()
    await world.advance(2)
    deploy(False)
    await world.crash()
    await world.advance("1d")
    run = await handle.get()
    assert run.status is Status.PAUSED
    assert "'sleep'" in run.error.message
    assert "'receive:box'" in run.error.message


# -- poison -----------------------------------------------------------------------------------


async def test_a_run_that_kills_its_worker_again_and_again_is_failed(world, caplog):
    """E3: after 5 recoveries without progress."""
    started = []

    @world.step(name="poison")
    async def poison() -> None:
        started.append(1)
        world.crash_soon()
        await asyncio.sleep(60)

    @world.workflow
    async def flow() -> None:
        await poison()

    with caplog.at_level(logging.CRITICAL):
        _, run = await failed(await flow.start())
    assert len(started) == 6
    assert "lost its worker" in run.error.message
    assert run.id in run.error.message
    assert run.status is Status.FAILED


async def test_progress_sets_the_recoveries_back(world):
    """E3"""
    crashed = []

    @world.step
    async def work(n: int) -> int:
        if (n, 1) not in crashed:
            crashed.append((n, 1))
            world.crash_soon()
            await asyncio.sleep(60)
        return n

    @world.workflow
    async def flow() -> int:
        return sum([await work(n) for n in range(8)])

    handle = await flow.start()
    assert await handle.result(SECONDS) == 28
    assert len(crashed) == 8
    assert (await handle.get()).recoveries == 0


async def test_an_at_most_once_step_counts_a_crash_as_its_failure(world):
    """Behaviour 7, D6"""
    started = []

    @world.step(name="charge", semantics="at_most_once")
    async def charge() -> int:
        started.append(1)
        world.crash_soon()
        await asyncio.sleep(60)
        return 1

    @world.workflow
    async def flow() -> str:
        try:
            await charge()
        except StepFailed as error:
            return str(error)
        return ""

    assert "was interrupted" in await (await flow.start()).result(SECONDS)
    assert started == [1]


async def test_an_at_most_once_step_with_attempts_is_tried_again(world):
    """D6: each attempt once."""
    started = []

    @world.step(name="charge", semantics="at_most_once", attempts=3)
    async def charge() -> int:
        started.append(1)
        if len(started) < 3:
            world.crash_soon()
            await asyncio.sleep(60)
        return len(started)

    @world.workflow
    async def flow() -> int:
        return await charge()

    handle = await flow.start()
    assert await handle.result(SECONDS) == 3
    assert [kind for kind, _ in kinds_of(await handle.get())] == ["attempt", "attempt", "step"]


async def test_a_step_runs_again_with_the_same_key_after_a_crash_before_its_record(world):
    """Behaviour 7"""
    keys = []

    @world.step
    async def charge() -> int:
        keys.append(current().idempotency_key)
        return len(keys)

    @world.workflow
    async def flow() -> int:
        return await charge()

    crashed = []

    def die_before_the_record(commit):
        if commit.entries and not crashed:
            crashed.append(1)
            world.crash_soon()
            return True
        return False

    world.process.mortal_store.before_commit = die_before_the_record
    assert await (await flow.start()).result(SECONDS) == 2
    assert len(set(keys)) == 1

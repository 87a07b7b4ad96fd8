"""Random workflows, random orders, random crashes: promises 1, 2 and 4.

`HYPOTHESIS_PROFILE=thorough` runs many more examples.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from typing import Any

from engine_support import World
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from random_workflows import ORDERED, UNORDERED, Body, Failed, Tree, trees

from streamline import NonRetryable, RunAlreadyCompleted, continue_as_new, current
from streamline.model import Commit, Entry, EntryKind, Run
from streamline.replay import Execution
from streamline.replay.outcome import Returned

_COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("quick", max_examples=25, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=3000, **_COMMON)
_profile = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

MESSAGES = 4
SECONDS = 30


class Trial:
    """One execution of a tree: a world, its definitions, and what was seen of it.

    Args:
        tree: What the body runs.
        seed: Decides in which order steps end.
        crashes: (number of the commit, whether before it) at which the worker dies.
        generations: How often the body runs the tree, continuing as new in between.
    """

    def __init__(
        self,
        tree: Tree,
        seed: int,
        crashes: frozenset[tuple[int, bool]],
        generations: int = 1,
    ) -> None:
        self.world = World()
        self.recorded: set[tuple[str, str]] = set()
        self.violations: list[str] = []
        self.commits = 0
        self.sent: set[str] = set()
        self._generations = generations
        self._tree = tree
        self._random = random.Random(seed)
        self._crashes = crashes
        self.workflow = self._define()
        self.world.before_commit = self._before
        self.world.after_commit = self._after
        self.world.before_write = lambda verb: self._before(None)
        self.world.after_write = lambda verb: self._dies(False)
        self.world.events.on("step:started", self._started)

    def _define(self) -> Any:
        world = self.world

        async def turns(count: int) -> None:
            for _ in range(count + self._random.randrange(4)):
                await asyncio.sleep(0)

        @world.step(name="work")
        async def work(value: int, count: int) -> int:
            await turns(count)
            return value

        @world.step(name="flaky")
        async def flaky(value: int, failures: int) -> int:
            await turns(0)
            if current().attempt <= failures:
                raise Failed(f"attempt {current().attempt}")
            return value

        @world.step(name="doomed")
        async def doomed(value: int) -> int:
            await turns(0)
            raise NonRetryable(f"doomed {value}")

        @world.workflow(name="broken")
        async def broken(value: int) -> None:
            raise Failed(f"broken {value}")

        @world.workflow(name="nested")
        async def nested(tree: list[Any]) -> Any:
            return await body().safely(tuple(tree))

        def body() -> Body:
            return Body(work, flaky, doomed, nested, broken)

        @world.workflow(name="flow")
        async def flow(*earlier: Any) -> Any:
            value = await body().safely(self._tree)
            if len(earlier) + 1 < self._generations:
                continue_as_new(*earlier, value)
            return [*earlier, value] if earlier else value

        return flow

    async def start(self) -> Any:
        """Start the run, under an id that its children's ids begin with."""
        return await self.workflow.options(id="r").start()

    def _before(self, commit: Commit | None) -> bool:
        self.commits += 1
        return self._dies(True)

    def _after(self, commit: Commit) -> bool:
        if commit.continuation is not None:  # the next generation has the same ids
            self.recorded = {each for each in self.recorded if each[0] != commit.run_id}
        steps = (entry.id for entry in commit.entries if entry.kind is EntryKind.STEP)
        self.recorded.update((commit.run_id, step) for step in steps)
        return self._dies(False)

    def _dies(self, before: bool) -> bool:
        if (self.commits, before) not in self._crashes:
            return False
        self.world.crash_soon()
        return True

    def _started(self, event: Any) -> None:
        if (event.run_id, event.step) in self.recorded:
            self.violations.append(f"{event.step} ran again")

    async def run(self) -> Run:
        """Run to the end, with messages sent meanwhile; returns the run with its whole journal."""
        async with self.world as world:
            handle = await self.start()
            speaking = asyncio.ensure_future(self._speak(handle))
            try:
                await handle.wait(SECONDS)
                await self.check_children()
            except TimeoutError:
                raise AssertionError(f"the run hangs: {await world.run(handle.id)}") from None
            finally:
                speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
            run = await world.run(handle.id)
            archived = await world._store.load_archive(run.id, run.journal_base)
            self._check_replay(run, [*archived, *run.journal])
        assert not self.violations
        return run

    async def check_children(self) -> None:
        """Whatever was started ends, and nobody has anything left to tell."""
        for run_id in self.world._shared.ids():
            await self.world.handle(run_id).wait(SECONDS)
        await self.world.settle()
        for run_id in self.world._shared.ids():
            assert (await self.world.run(run_id)).outbox == []

    async def _speak(self, handle: Any) -> None:
        for number in range(MESSAGES):
            for _ in range(self._random.randrange(20)):
                await asyncio.sleep(0)
            try:
                # Twice, as a sender does whose first try got no answer.
                await handle.send("ab"[number % 2], number, id=f"m{number}")
                self.sent.add(f"m{number}")
                await handle.send("ab"[number % 2], number, id=f"m{number}")
            except RunAlreadyCompleted:
                return

    def _check_replay(self, run: Run, journal: list[Entry]) -> None:
        """The journal alone gives the stored outcome, and is in order."""
        execution = Execution(run, self.workflow, limit=1 << 22, recorded=journal)
        execution.start(replaying=True)
        execution.replay(journal)
        assert isinstance(execution.outcome, Returned), execution.outcome
        assert _plain(execution.outcome.value) == _plain(run.output)
        execution.evict()
        steps = [e.id for e in journal if e.kind is EntryKind.STEP]
        assert len(steps) == len(set(steps)), "a step was recorded twice"
        messages = [e.message for e in journal if e.message is not None]
        assert len(messages) == len(set(messages)), "a message was taken twice"
        for channel in "ab":
            taken = [e.message for e in journal if e.id.partition("#")[0] == f"receive:{channel}"]
            assert taken == sorted(taken), "messages were taken out of order"
        waiting = {message.id for message in run.inbox}
        assert not waiting & set(messages), "a message was taken and left"
        before = [] if run.past is None else run.past.taken
        everywhere = [*before, *messages, *waiting]
        assert len(everywhere) == len(set(everywhere)), "a message counted twice"
        assert self.sent <= set(everywhere), "an acknowledged message was lost"
        for numbers in ([id_ for id_ in before if int(id_[1:]) % 2 == odd] for odd in (0, 1)):
            assert numbers == sorted(numbers), "messages were taken out of order"
        assert [e.at for e in journal] == sorted(e.at for e in journal)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def run_trial(
    tree: Tree, seed: int, crashes: frozenset[tuple[int, bool]], generations: int = 1
) -> tuple[Trial, Run]:
    trial = Trial(tree, seed, crashes, generations)
    with asyncio.Runner() as runner:
        run = runner.run(trial.run())
    return trial, run


crash_points = st.frozensets(st.tuples(st.integers(1, 20), st.booleans()), max_size=4)
seeds = st.integers(0, 2**32 - 1)


@given(tree=trees(ORDERED, 8), seed=seeds, other=seeds, crashes=crash_points)
@settings(_profile)
def test_crashes_and_orders_change_no_ordered_workflow(tree, seed, other, crashes):
    """Promises 1 and 4; behaviours 6, 8, 9: value and context, whatever ends or dies first."""
    calm, expected = run_trial(tree, seed, frozenset())
    shaken, run = run_trial(tree, other, crashes)
    note(f"{calm.commits} commits without crashes, {shaken.commits} with")
    assert _plain(run.output) == _plain(expected.output)
    assert run.context == expected.context
    assert shaken.recorded == calm.recorded


@given(tree=trees(ORDERED + UNORDERED, 8), seed=seeds, crashes=crash_points)
@settings(_profile)
def test_crashed_races_replay_to_what_was_stored(tree, seed, crashes):
    """Promises 1, 2 and 4; behaviours 10, 24, 26: the journal tells the outcome, once each."""
    run_trial(tree, seed, crashes)


@given(tree=trees(ORDERED, 5), seed=seeds, other=seeds, crashes=crash_points)
@settings(_profile)
def test_crashes_change_nothing_of_a_run_that_continues_as_new(tree, seed, other, crashes):
    """Promises 1 and 4: each generation has the same value, whatever dies between them."""
    _, expected = run_trial(tree, seed, frozenset(), 3)
    _, run = run_trial(tree, other, crashes, 3)
    assert _plain(run.output) == _plain(expected.output)
    assert (run.generation, run.context) == (3, expected.context)


@given(tree=trees(ORDERED + UNORDERED, 5), seed=seeds, crashes=crash_points)
@settings(_profile)
def test_no_message_is_lost_or_doubled_by_continuing_as_new(tree, seed, crashes):
    """Promises 2 and 4: whatever ends, is cancelled or dies between two generations."""
    run_trial(tree, seed, crashes, 3)


@given(tree=trees(ORDERED + UNORDERED, 6), seed=seeds, at=st.integers(0, 30))
@settings(_profile)
def test_a_cancel_at_any_moment_ends_the_run_or_comes_too_late(tree, seed, at):
    """C1; behaviours 19 to 21: it is acknowledged, so it is acted on."""
    trial = Trial(tree, seed, frozenset())

    async def run() -> None:
        async with trial.world as world:
            handle = await trial.start()
            for _ in range(at):
                await asyncio.sleep(0)
            await handle.cancel()
            run = await handle.wait(SECONDS)
            stored = await world.run(handle.id)
            taken = [e for e in stored.journal if e.id == "cancel"]
            assert not [m for m in stored.inbox if m.kind.value == "cancel"]
            assert len(taken) <= 1
            await trial.check_children()
            assert run.status.value in ("cancelled", "done")
            assert not trial.violations

    with asyncio.Runner() as runner:
        runner.run(run())


takeovers = st.frozensets(st.tuples(st.integers(1, 8), st.booleans()), max_size=3)


@given(
    tree=trees(ORDERED + UNORDERED, 6),
    seed=seeds,
    moments=takeovers,
    generations=st.integers(1, 2),
)
@settings(_profile)
def test_a_run_taken_from_a_living_owner_stays_one_run(tree, seed, moments, generations):
    """Promises 1 and 3; behaviours 3, 4, 35: the old owner goes on, and writes nothing."""
    trial = Trial(tree, seed, frozenset(), generations)
    world = trial.world

    def seize(before: bool) -> Any:
        def hook(commit: Commit) -> bool:
            if not before:
                trial._after(commit)
            if (trial.commits, before) in moments:
                _seize(world, commit.run_id)
            trial.commits += before
            return False

        return hook

    world.before_commit, world.after_commit = seize(True), seize(False)

    async def run() -> None:
        async with world:
            other = await world.another_worker()
            other.mortal_store.before_commit = world.before_commit
            other.mortal_store.after_commit = world.after_commit
            handle = await trial.start()
            speaking = asyncio.ensure_future(trial._speak(handle))
            await handle.wait(SECONDS)
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
            run = await world.run(handle.id)
            trial._check_replay(run, run.journal)
            await trial.check_children()
            fences = [entry.fence for entry in run.journal]
            assert fences == sorted(fences)

    with asyncio.Runner() as runner:
        runner.run(run())
    assert not trial.violations


def _seize(world: World, run_id: str) -> None:
    """Let the worker that doesn't hold a run take it, within a commit of the one that does."""
    holder = world._shared.get(run_id).get("worker")
    for process in (world.process, *world.others):
        if holder is not None and process.worker.id != holder:
            store = process.mortal_store
            _now(store.expire_claims(holder))
            claimed = _now(store.claim_run(process.worker.scheduler.new_claim(), run_id))
            if claimed is not None:
                process.worker.adopt(claimed)


def _now(coroutine: Any) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the store waited")

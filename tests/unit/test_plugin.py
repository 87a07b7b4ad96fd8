"""The pytest plugin, used as users use it: a small project of its own (K1 to K3)."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

SHOP = """
from datetime import timedelta

from streamline import now, receive, sleep, step, workflow


@step(attempts=2)
async def charge(total: int) -> str:
    raise RuntimeError("no test may get here")


@workflow
async def checkout(total: int) -> list[str]:
    receipt = await charge(total)
    await sleep("30d")
    return [receipt, await receive("shipped", type=str)]


@workflow
async def patient() -> str:
    began = now()
    await sleep("1h")
    return str(now() - began)
"""

INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

TESTS = """
import pytest

from shop import charge, checkout, patient
from streamline import RunFailed, Status, sleep, step, workflow


async def test_mocked(streamline):
    mock = streamline.mock(charge, returns="r-1")
    handle = await checkout.start(42)
    await handle.send("shipped", "yes")
    assert await handle.result(timeout=5) == ["r-1", "yes"]
    mock.assert_awaited_once_with(42)


async def test_mock_that_raises(streamline):
    streamline.mock(charge, raises=OSError("declined"))
    with pytest.raises(RunFailed, match="declined"):
        await (await checkout.start(1)).result(timeout=5)


async def test_mock_with_side_effects(streamline):
    mock = streamline.mock(charge, side_effect=[OSError("once"), "r-2"])
    handle = await checkout.start(42)
    await handle.send("shipped", "yes")
    assert await handle.result(timeout=5) == ["r-2", "yes"]
    assert mock.await_count == 2


async def test_mocks_are_gone_with_their_environment(streamline):
    with pytest.raises(RunFailed, match="no test may get here"):
        await (await checkout.start(1)).result(timeout=5)


async def test_time_is_skipped_and_can_be_advanced(streamline):
    handle = await patient.start()
    await streamline.advance("59m")
    assert await handle.status() is Status.WAITING
    assert await handle.result(timeout=5) == "1:00:00"


async def test_crash(streamline):
    streamline.mock(charge, returns="r")
    handle = await checkout.start(1)
    await streamline.advance("1d")
    await streamline.crash()
    await handle.send("shipped", "later")
    assert await handle.result(timeout=5) == ["r", "later"]


async def test_crash_everywhere(streamline):
    streamline.mock(charge, returns="r")

    async def ship(handle):
        await handle.send("shipped", "yes")

    result = await streamline.crash_everywhere_with(lambda: checkout.start(1), ship)
    assert result == ["r", "yes"]
    assert await streamline.crash_everywhere(patient) == "1:00:00"


async def test_a_mock_must_fit_the_steps_annotation(streamline):
    streamline.mock(charge, returns={"not": "text"})
    with pytest.raises(RunFailed, match="charge"):
        await (await checkout.start(1)).result(timeout=5)


async def test_crash_everywhere_finds_what_is_not_deterministic(streamline):
    calls = []

    @step
    async def draw(n: int) -> int:
        return n

    @workflow
    async def unfair() -> int:
        calls.append(1)  # outside of a step: runs again on every replay
        first = await draw(len(calls))
        await sleep("1h")
        return first + await draw(1)

    with pytest.raises(AssertionError, match="after a crash (before|after) write"):
        await streamline.crash_everywhere(unfair)
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(shop=SHOP, test_shop=TESTS)
    pytester.makeini(INI)
    return pytester


def test_the_fixtures_serve_a_small_project(project):
    """K1, K2, K3"""
    result = project.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=9)


def test_the_fixtures_are_found_by_themselves(project):
    """K1"""
    result = project.runpytest_inprocess("--fixtures", "-q")
    result.stdout.fnmatch_lines(["streamline *", "streamline_mongo *"])


UNRELATED = """
import sys


def test_nothing_of_streamline_is_loaded():
    heavy = {"streamline", "pymongo", "bson", "beanie", "pydantic", "msgspec", "tenacity"}
    assert heavy & {name.partition(".")[0] for name in sys.modules} == set()
    assert "pytest_streamline" in sys.modules
"""


def test_sessions_that_use_no_fixture_do_not_load_the_package(pytester):
    """A suite that has nothing to do with streamline must not pay for it."""
    pytester.makepyfile(UNRELATED)
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)

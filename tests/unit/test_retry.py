"""`RetryPolicy`: tenacity's strategies, asked across processes."""

from __future__ import annotations

from datetime import timedelta

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from streamline import NonRetryable, RetryAfter
from streamline.retry import RetryPolicy, wait_jittered_exponential


def judge(policy, attempt=1, error=None, result=None, elapsed=0.0):
    return policy.judge(attempt=attempt, elapsed=elapsed, error=error, result=result)


def test_a_success_is_wanted():
    verdict = judge(RetryPolicy(), result=1)
    assert (verdict.unwanted, verdict.wait) == (False, None)


def test_three_attempts_by_default():
    policy = RetryPolicy()
    waits = [judge(policy, n, OSError()).wait for n in (1, 2, 3)]
    assert None not in waits[:2]
    assert waits[2] is None
    assert judge(policy, 3, OSError()).unwanted


@pytest.mark.parametrize("attempt", [1, 2, 7, 8, 64, 65, 10_000])
def test_the_default_wait_doubles_up_to_a_minute_with_jitter(attempt):
    policy = RetryPolicy(attempts=1_000_000)
    plain = min(60.0, 2.0 ** min(attempt - 1, 10))
    for _ in range(50):
        wait = judge(policy, attempt, OSError()).wait.total_seconds()
        assert 0.7 * plain <= wait <= 1.3 * plain


@given(attempt=st.integers(1, 2**40))
def test_no_attempt_number_overflows_the_wait(attempt):
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempt
    assert 0 < wait_jittered_exponential()(state) <= 78


@pytest.mark.parametrize(
    "error", [NonRetryable("x"), type("E", (OSError,), {"retryable": False})()]
)
def test_what_says_it_is_not_retryable_is_not(error):
    verdict = judge(RetryPolicy(attempts=9), 1, error)
    assert verdict.wait is None
    assert not verdict.unwanted  # it isn't that the attempts ran out


def test_retryable_true_changes_nothing():
    error = type("E", (OSError,), {"retryable": True})()
    assert judge(RetryPolicy(), 1, error).wait is not None


@pytest.mark.parametrize("delay", ["2h", 7200, timedelta(hours=2)])
def test_retry_after_sets_the_wait_also_against_a_retry_strategy(delay):
    policy = RetryPolicy(retry=tenacity.retry_never)
    assert judge(policy, 1, RetryAfter(delay)).wait == timedelta(hours=2)


def test_retry_after_does_not_add_attempts():
    verdict = judge(RetryPolicy(attempts=2), 2, RetryAfter(1))
    assert verdict.unwanted
    assert verdict.wait is None


def test_retry_after_shows_why():
    assert str(RetryAfter("30s")) == "retry after 30s"
    assert str(RetryAfter(1, "busy")) == "busy"
    with pytest.raises(ValueError, match="negative"):
        RetryAfter(-1)


def test_strategies_see_attempt_elapsed_time_outcome_and_the_coming_sleep():
    seen = {}

    def stop(state):
        seen["attempt"] = state.attempt_number
        seen["elapsed"] = state.seconds_since_start
        seen["sleep"] = state.upcoming_sleep
        seen["failed"] = state.outcome.failed
        return False

    policy = RetryPolicy(stop=stop, wait=tenacity.wait_fixed(7))
    assert judge(policy, 4, OSError(), elapsed=100.0).wait == timedelta(seconds=7)
    assert seen["attempt"] == 4
    assert 100 <= seen["elapsed"] < 101
    assert (seen["sleep"], seen["failed"]) == (7, True)


def test_stop_takes_the_place_of_attempts():
    policy = RetryPolicy(attempts=1, stop=tenacity.stop_after_attempt(3))
    assert judge(policy, 2, OSError()).wait is not None
    assert judge(policy, 3, OSError()).wait is None
    before_delay = RetryPolicy(stop=tenacity.stop_before_delay(10), wait=tenacity.wait_fixed(5))
    assert judge(before_delay, 1, OSError(), elapsed=4).wait is not None
    assert judge(before_delay, 1, OSError(), elapsed=6).wait is None


def test_retry_looks_at_errors_and_results():
    by_type = RetryPolicy(retry=tenacity.retry_if_exception_type(OSError))
    assert judge(by_type, 1, ValueError()).wait is None
    assert not judge(by_type, 1, ValueError()).unwanted
    by_result = RetryPolicy(retry=tenacity.retry_if_result(lambda value: value is None))
    assert judge(by_result, 1, result=None).wait is not None
    assert judge(by_result, 1, result=1).wait is None
    assert judge(by_result, 1, error=OSError()).wait is None
    either = RetryPolicy(
        retry=tenacity.retry_if_exception_type() | tenacity.retry_if_result(lambda v: v == 0)
    )
    assert judge(either, 1, OSError()).wait is not None
    assert judge(either, 1, result=0).wait is not None


def test_chained_and_added_waits_work():
    chain = tenacity.wait_chain(*[tenacity.wait_fixed(n) for n in (1, 5, 9)])
    policy = RetryPolicy(attempts=9, wait=chain + tenacity.wait_fixed(1))
    assert [judge(policy, n, OSError()).wait.seconds for n in (1, 2, 3, 4)] == [2, 6, 10, 10]


def test_a_negative_wait_is_none_at_all():
    assert judge(RetryPolicy(wait=lambda state: -5), 1, OSError()).wait == timedelta()

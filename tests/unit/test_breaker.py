"""The circuit breaker of the scheduler (O2)."""

from __future__ import annotations

from streamline.worker.breaker import MAX_DELAY, THRESHOLD, CircuitBreaker


def test_it_opens_after_five_failures_in_a_row_and_says_so_once():
    breaker = CircuitBreaker()
    assert [breaker.fail() for _ in range(8)] == [False] * 4 + [True] + [False] * 3
    assert breaker.open
    assert THRESHOLD == 5


def test_the_first_success_closes_it():
    breaker = CircuitBreaker()
    for _ in range(20):
        breaker.fail()
    assert breaker.succeed() is True
    assert not breaker.open
    assert breaker.succeed() is False


def test_failures_with_successes_between_do_not_open_it():
    breaker = CircuitBreaker()
    for _ in range(20):
        assert not any(breaker.fail() for _ in range(4))
        assert breaker.succeed() is False
    assert not breaker.open


def test_the_delay_grows_and_is_bounded():
    breaker = CircuitBreaker()
    bounds = []
    for _ in range(2000):
        breaker.fail()
        bounds.append(breaker.delay())
    assert bounds[0] < 0.3
    assert max(bounds) <= MAX_DELAY
    assert min(bounds[20:]) >= MAX_DELAY / 2


def test_the_success_rate():
    breaker = CircuitBreaker()
    assert breaker.success_rate == 1.0
    breaker.succeed()
    breaker.fail()
    assert breaker.success_rate == 0.5

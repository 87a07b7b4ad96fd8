"""When a failed attempt of a step is followed by another: tenacity's strategies, asked by us.

The strategies are tenacity's own objects; only the loop around them is ours, since the attempts of
one step may happen in different processes, days apart.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import msgspec
import tenacity
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from streamline.errors import RetryAfter


class wait_jittered_exponential(wait_base):
    """Wait `initial * 2^(n-1)` seconds after attempt n, at most `maximum`, +- `jitter` of it."""

    def __init__(self, initial: float = 1.0, maximum: float = 60.0, jitter: float = 0.3) -> None:
        self.initial = initial
        self.maximum = maximum
        self.jitter = jitter

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        # 2^63 is past any maximum; the bound keeps the power from overflowing a float.
        exponent = min(retry_state.attempt_number - 1, 63)
        wait = min(self.maximum, self.initial * 2.0**exponent)
        return wait * random.uniform(1 - self.jitter, 1 + self.jitter)


class _retry_if_retryable(retry_base):
    """Retry every error but one that says `retryable = False`."""

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        outcome = retry_state.outcome
        return outcome is not None and outcome.failed


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy says of an attempt: whether its outcome is unwanted, and when to try again.

    An unwanted outcome without a `wait` was the last attempt's.
    """

    unwanted: bool
    wait: timedelta | None = None


_WANTED = Verdict(unwanted=False)
_DEFAULT_RETRY = _retry_if_retryable()


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What decides about another attempt; `stop`, `wait` and `retry` are tenacity's strategies."""

    attempts: int = 3
    stop: stop_base | None = None  # takes the place of `attempts`
    wait: wait_base = wait_jittered_exponential()
    retry: retry_base = _DEFAULT_RETRY

    def judge(
        self, *, attempt: int, elapsed: float, error: BaseException | None, result: Any = None
    ) -> Verdict:
        """Judge an attempt that just ended.

        Args:
            attempt: Its number, from 1.
            elapsed: Seconds since the first attempt began.
            error: What it raised; None if it returned `result`.
        """
        if error is None and self.retry is _DEFAULT_RETRY:
            return _WANTED
        if error is not None and getattr(error, "retryable", True) is False:
            return _WANTED
        state = self._state(attempt, elapsed, error, result)
        if isinstance(error, RetryAfter):
            wait = error.delay
        elif self.retry(state):
            wait = timedelta(seconds=max(0.0, float(self.wait(state))))
        else:
            return _WANTED
        state.upcoming_sleep = wait.total_seconds()
        return Verdict(unwanted=True, wait=None if self._stops(state) else wait)

    def _stops(self, state: tenacity.RetryCallState) -> bool:
        if self.stop is not None:
            return bool(self.stop(state))
        return state.attempt_number >= self.attempts

    def _state(
        self, attempt: int, elapsed: float, error: BaseException | None, result: Any
    ) -> tenacity.RetryCallState:
        # A strategy may look at `retry_object`; a bare Retrying has all that it can ask for.
        state = tenacity.RetryCallState(
            retry_object=tenacity.Retrying(), fn=None, args=(), kwargs={}
        )
        state.attempt_number = attempt
        state.start_time -= elapsed
        if error is not None:
            state.set_exception((type(error), error, error.__traceback__))
        else:
            state.set_result(result)
        return state

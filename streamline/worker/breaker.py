"""`CircuitBreaker`: how the scheduler holds back while the server is away, and comes back."""

from __future__ import annotations

import random

THRESHOLD = 5
MAX_DELAY = 30.0


class CircuitBreaker:
    """Counts failures in a row; open after `THRESHOLD`, closed by the first success."""

    def __init__(self) -> None:
        self.failures: int = 0
        self.polls: int = 0
        self.successes: int = 0

    @property
    def open(self) -> bool:
        """Whether so many calls in a row have failed that callers should hold back."""
        return self.failures >= THRESHOLD

    def succeed(self) -> bool:
        """Count a success. True if it closed an open breaker."""
        was_open = self.open
        self.failures = 0
        self.polls += 1
        self.successes += 1
        return was_open

    def fail(self) -> bool:
        """Count a failure. True if it opened the breaker."""
        self.failures += 1
        self.polls += 1
        return self.failures == THRESHOLD

    def delay(self) -> float:
        """Return how many seconds to wait before the next try: it doubles, with jitter."""
        exponent = min(self.failures, 10)
        return min(MAX_DELAY, 0.1 * 2.0**exponent) * random.uniform(0.5, 1.0)

    @property
    def success_rate(self) -> float:
        """The share of calls that succeeded; 1.0 before the first."""
        return 1.0 if self.polls == 0 else self.successes / self.polls

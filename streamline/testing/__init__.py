"""The testing kit: an engine in memory whose time is skipped and whose worker can die."""

from streamline.testing.clock import SkippedClock
from streamline.testing.environment import Environment

__all__ = ["Environment", "SkippedClock"]

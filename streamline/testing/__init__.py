"""The testing kit: an engine in memory whose time is skipped and whose worker can die."""

from streamline.store.spill import with_payloads
from streamline.testing.clock import SkippedClock
from streamline.testing.environment import Environment
from streamline.testing.history import Replayed, export_history, import_history, replay

__all__ = [
    "Environment",
    "Replayed",
    "SkippedClock",
    "export_history",
    "import_history",
    "replay",
    "with_payloads",
]

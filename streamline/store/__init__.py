"""Where runs are kept: the interface, and the stores that implement it."""

from streamline.store.base import Renewal, RunStore
from streamline.store.spill import Spill

__all__ = ["Renewal", "RunStore", "Spill"]

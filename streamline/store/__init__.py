"""Where runs are kept: the interface, and the stores that implement it."""

from streamline.store.base import Renewal, RunStore

__all__ = ["Renewal", "RunStore"]

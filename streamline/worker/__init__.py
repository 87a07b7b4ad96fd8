"""What drives runs: claims, leases, attempts and commits."""

from streamline.worker.services import Services
from streamline.worker.worker import Worker

__all__ = ["Services", "Worker"]

"""`Outputs`: what the steps of one run returned, for whoever asks once more (`output_of`)."""

from __future__ import annotations

from typing import Any

from streamline.codec import Dropped, decode, kept
from streamline.errors import PayloadTooLarge, StepNotFound


class Outputs:
    """Encoded results by the ids of their steps; large ones are not kept.

    Args:
        run_id: The run's.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._outputs: dict[str, tuple[Any, Any]] = {}

    def add(self, step_id: str, value: Any, returns: Any) -> None:
        """Take in what a step returned, encoded, and the type that it says it returns."""
        self._outputs[step_id] = (kept(value), returns)

    def of(self, step_id: str) -> Any:
        """Return what a step returned, decoded.

        Raises:
            StepNotFound: It has no recorded result.
            PayloadTooLarge: It was too large to be kept.
        """
        if step_id not in self._outputs:
            raise StepNotFound(
                f"run {self._run_id!r} has no recorded output of step {step_id!r}",
                run_id=self._run_id,
                step=step_id,
            )
        encoded, returns = self._outputs[step_id]
        if isinstance(encoded, Dropped):
            raise PayloadTooLarge(
                f"the output of step {step_id!r} of run {self._run_id!r}, {encoded.size:,} bytes, "
                "is too large to be asked for again; pass it on as an argument",
                run_id=self._run_id,
                step=step_id,
            )
        return decode(encoded, returns, what=f"the output of {step_id!r}")

"""The steps of a run as they happen, who hears of them, and when to stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from qprune.steps import Observer, Step


class Journal:
    """The steps so far, who hears of them, and when to stop."""

    def __init__(
        self, observers: Sequence[Observer], max_seconds: float | None, max_steps: int | None
    ) -> None:
        self.steps: list[Step] = []
        self._observers = observers
        self._end = None if max_seconds is None else time.perf_counter() + max_seconds
        self._max_steps = max_steps

    def add(self, **record: Any) -> None:
        """Note one step and tell the observers."""
        step = Step(index=len(self.steps), **record)
        self.steps.append(step)
        for observe in self._observers:
            observe(step)

    @property
    def stopped(self) -> str:
        """Why the run stops: "max_seconds", "max_steps", or "done"."""
        if self._end is not None and time.perf_counter() >= self._end:
            return "max_seconds"
        if self._max_steps is not None and len(self.steps) >= self._max_steps:
            return "max_steps"
        return "done"

    @property
    def exhausted(self) -> bool:
        """Whether the budget is spent."""
        return self.stopped != "done"

"""Journal of a run: its steps, callbacks and limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from qprune.distributed.ranks import ALONE, Ranks
from qprune.results import Fault, Observer, Step


class Journal:
    """Steps so far, with step callbacks and limits.

    Args:
        observers: callbacks for every step.
        max_seconds: wall time from now on; None = no limit.
        max_steps: number of steps; None = no limit.
        should_stop: callback before every step; True ends the run as a limit does.
        ranks: processes that end together, when the first one does.
    """

    def __init__(
        self,
        observers: Sequence[Observer],
        max_seconds: float | None,
        max_steps: int | None,
        should_stop: Callable[[], bool] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.steps: list[Step] = []
        self._faults: list[Fault] = []
        self._observers = observers
        self._end = None if max_seconds is None else time.perf_counter() + max_seconds
        self._max_steps = max_steps
        self._should_stop = should_stop
        self._ranks = ranks

    def resume(self, steps: Sequence[Step], seconds: float) -> None:
        """Go on after ``steps``, which took ``seconds`` of the time limit."""
        self.steps = list(steps)
        if self._end is not None:
            self._end -= seconds

    def add(self, **record: Any) -> None:
        """Add one step, with the faults since the last one, and call the observers."""
        step = Step(index=len(self.steps), faults=tuple(self._faults), **record)
        self._faults.clear()
        self.steps.append(step)
        for observe in self._observers:
            observe(step)

    def fault(self, fault: Fault) -> None:
        """Note a failure that was recovered; it is added to the next step."""
        self._faults.append(fault)

    @property
    def stopped(self) -> str:
        """Reason to stop: "interrupted", "max_seconds", "max_steps", or "done".

        Every rank must ask.
        """
        return self._ranks.once(self._own_verdict)

    def _own_verdict(self) -> str:
        if self._should_stop is not None and self._should_stop():
            return "interrupted"
        if self._end is not None and time.perf_counter() >= self._end:
            return "max_seconds"
        if self._max_steps is not None and len(self.steps) >= self._max_steps:
            return "max_steps"
        return "done"

    @property
    def exhausted(self) -> bool:
        """True when a limit is reached."""
        return self.stopped != "done"

"""The steps of a run as they happen, and when it has to end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qprune.distributed.ranks import ALONE, Ranks
from qprune.errors import ImpossibleRequestError
from qprune.results import Estimate, Fault, Observer, Step
from solvers.host.ranges import Count, checked


@dataclass(frozen=True)
class Limits:
    """Limits of time, steps and memory, and a stop from outside.

    Args:
        max_seconds: wall time; the run ends with the best mask at the asked sparsity.
        max_steps: the same by number of steps.
        max_memory: bytes that the process may hold; a run that needs more is refused before it
            starts. None: what is in use and what is available; ``math.inf`` never refuses.
        should_stop: asked before every step; True ends the run as a limit does.
        expect: called with the `qprune.Estimate` of the run before it starts; what it raises ends
            the run.

    Raises:
        ImpossibleRequestError: a number makes no sense.

    Example:
        >>> Limits(max_seconds=60).max_steps is None
        True
    """

    max_seconds: float | None = None
    max_steps: int | None = None
    max_memory: float | None = None
    should_stop: Callable[[], bool] | None = None
    expect: Callable[[Estimate], None] | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            try:
                checked(Count, self.max_steps, "max_steps")
            except ValueError as error:
                raise ImpossibleRequestError(str(error)) from error
        if self.max_seconds is not None and not self.max_seconds >= 0:
            raise ImpossibleRequestError(
                f"max_seconds must be at least 0, not {self.max_seconds!r}"
            )
        if self.max_memory is not None and not self.max_memory > 0:
            raise ImpossibleRequestError(
                f"max_memory must be more than 0 bytes, not {self.max_memory!r}"
            )


class Journal:
    """The steps so far, their observers, and whether the run has to end.

    Its clock runs from the moment it is made.

    Args:
        limits: of the run.
        observers: called with every step.
        ranks: processes that end together, when the first one does.
    """

    def __init__(
        self, limits: Limits, observers: Sequence[Observer] = (), ranks: Ranks = ALONE
    ) -> None:
        self.steps: list[Step] = []
        self._faults: list[Fault] = []
        self._observers = observers
        self._limits = limits
        self._began = time.perf_counter()
        self._ranks = ranks

    def resume(self, steps: Sequence[Step], seconds: float) -> None:
        """Go on after ``steps``, which took ``seconds`` of the time limit."""
        self.steps = list(steps)
        self._began -= seconds

    def begin(self, kind: str, stage: int = 0, round_number: int = 0) -> Attempt:
        """The stopwatch of a step that now begins."""
        return Attempt(self, kind, stage, round_number)

    def add(self, **record: Any) -> None:
        """Note one step, with the faults since the last one, and call the observers."""
        step = Step(index=len(self.steps), faults=tuple(self._faults), **record)
        self._faults.clear()
        self.steps.append(step)
        for observe in self._observers:
            observe(step)

    def fault(self, fault: Fault) -> None:
        """Note a fault that the run goes on after; it is part of the next step."""
        self._faults.append(fault)

    @property
    def stopped(self) -> str:
        """Reason to stop: "interrupted", "max_seconds", "max_steps", or "done".

        Every rank must ask.
        """
        return self._ranks.once(self._own_verdict)

    def _own_verdict(self) -> str:
        limits = self._limits
        if limits.should_stop is not None and limits.should_stop():
            return "interrupted"
        passed = time.perf_counter() - self._began
        if limits.max_seconds is not None and passed >= limits.max_seconds:
            return "max_seconds"
        if limits.max_steps is not None and len(self.steps) >= limits.max_steps:
            return "max_steps"
        return "done"

    @property
    def exhausted(self) -> bool:
        """True if a limit is reached."""
        return self.stopped != "done"


class Attempt:
    """A step under way: wall time by phase, and process time in all."""

    def __init__(self, journal: Journal, kind: str, stage: int, round_number: int) -> None:
        self._journal = journal
        self._place = {"kind": kind, "stage": stage, "round": round_number}
        self._seconds: dict[str, float] = {}
        self._began = time.process_time()

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Add the time spent inside to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def note(
        self,
        *,
        sparsity: float,
        price: float = 0.0,
        accepted: bool = True,
        predicted: float | None = None,
        real: float = math.nan,
        loss: float = math.nan,
        fit_loss: float = math.nan,
        flips: int = 0,
        **more: Any,
    ) -> None:
        """Add the step to the journal; the clocks start anew."""
        self._journal.add(
            **self._place,
            sparsity=sparsity,
            price=price,
            accepted=accepted,
            predicted=predicted,
            real=real,
            loss=loss,
            fit_loss=fit_loss,
            flips=flips,
            seconds=dict(self._seconds),
            cpu_seconds=time.process_time() - self._began,
            **more,
        )
        self._seconds.clear()
        self._began = time.process_time()

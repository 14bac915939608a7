"""Answers: every state that a sampler returned, and the failures before it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.problem.problem import QuadraticProblem
from solvers.problem.solution import Solution


@dataclass(frozen=True)
class Fault:
    """Failure from which the caller recovered.

    Attributes:
        kind: "sampler" (an error or an invalid answer), "timeout", "crash", "wrong counts" or
            "wrong energies"; a pruning run adds "out of memory", "not finite" and "worker".
        message: the failure, in one line.
        remedy: the action taken.
        block: number of the problem among those asked together; None for a problem alone.
    """

    kind: str
    message: str
    remedy: str
    block: int | None = None


@dataclass(frozen=True, eq=False)
class Answer(Solution):
    """Checked `Solution`: exact counts, energies recomputed in float64, best first.

    No state is worse than the present one, where that was given: it is then among them if the
    sampler found none better.

    Attributes:
        seconds: wall time inside the sampler.
        timing: nanoseconds of the sampler's own parts, where it has them; no part of ``info``,
            which is the same for one seed.
        faults: failures before this answer, and what was mended in it.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0], np.zeros((2, 2)))
        >>> Answer.of_state(problem, np.array([0, 1], dtype=np.int8)).energy
        -1.0
    """

    seconds: float = 0.0
    timing: Mapping[str, Any] = field(default_factory=dict[str, Any])
    faults: tuple[Fault, ...] = ()

    @classmethod
    def of_state(cls, problem: QuadraticProblem, state: NDArray[np.int8]) -> Answer:
        """The answer with one state, shape (n,), that no sampler was asked for."""
        return cls(state[None], problem.energies(state[None]))

    @property
    def states(self) -> NDArray[np.int8]:
        """Every state, shape (k, n), int8; the first is the best."""
        return self.samples

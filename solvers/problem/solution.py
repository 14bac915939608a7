"""Solutions: samples, their recomputed energies, and the bound proved for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dimod
import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.problem.gap import UNKNOWN, Gap, gap_between
from solvers.problem.problem import QuadraticProblem

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Solution:
    """Samples of one problem, best first.

    Attributes:
        samples: shape (reads, n), int8, one binary state a row.
        energies: shape (reads,), float64, computed from the problem, ascending.
        lower_bound: no feasible state has a lower energy; -inf when nothing is known.
        info: the sampler's own data (sweeps, swaps, timings), JSON-friendly; has ``proved``
            where there is a bound.
        certified: the gap of the best state, computed without the offset; see
            `solvers.problem.gap`.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0], np.zeros((2, 2)))
        >>> found = Solution.of(problem, [[1, 1], [0, 1]], lower_bound=-1.0)
        >>> found.samples.tolist(), found.energies.tolist(), found.proved
        ([[0, 1], [1, 1]], [-1.0, 0.0], True)
    """

    samples: NDArray[np.int8]
    energies: NDArray[np.float64]
    lower_bound: float = -np.inf
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    certified: Gap = UNKNOWN

    @classmethod
    def of(
        cls,
        problem: QuadraticProblem,
        samples: ArrayLike,
        *,
        energies: NDArray[np.float64] | None = None,
        lower_bound: float = -np.inf,
        info: Mapping[str, Any] | None = None,
    ) -> Solution:
        """Order samples by the energy that the problem itself gives them (ties keep order).

        Args:
            problem: the problem of the samples.
            samples: shape (reads, n) or (n,), with exact counts.
            energies: those of the samples, where they are known; shape (reads,).
            lower_bound: of the problem, offset included.
            info: the sampler's own data.
        """
        states = np.atleast_2d(np.ascontiguousarray(samples, dtype=np.int8))
        energies = problem.energies(states) if energies is None else energies
        order = np.argsort(energies, kind="stable")
        found = cls(states[order], energies[order], float(lower_bound), dict(info or {}))
        return found._judged(problem)

    def _judged(self, problem: QuadraticProblem) -> Solution:
        """The solution with its gap."""
        if not np.isfinite(self.lower_bound) or not len(self.samples):
            return self
        offset = problem.offset
        energy = self.energy
        if offset:
            energy = float(problem.with_linear(problem.linear, 0.0).energies(self.samples[:1])[0])
        # Adding the offset has rounded the bound.
        lost = 2.0 * _EPS * max(abs(offset), abs(self.lower_bound)) if offset else 0.0
        found = gap_between(problem, energy, self.lower_bound - offset, lost)
        return replace(self, certified=found, info={**self.info, "proved": found.proved})

    def joined(self, problem: QuadraticProblem, state: NDArray[np.int8]) -> Solution:
        """The solution with ``state``, shape (n,), for the worst sample if it beats the best."""
        energy = problem.energy(state)
        if energy >= self.energy:
            return self
        samples = np.concatenate([state[None], self.samples[:-1]])
        energies = np.concatenate([[energy], self.energies[:-1]])
        return replace(self, samples=samples, energies=energies)._judged(problem)

    def shifted(self, offset: float) -> Solution:
        """The solution of the same problem with ``offset`` added to every energy."""
        return replace(self, energies=offset + self.energies, lower_bound=offset + self.lower_bound)

    @property
    def sample(self) -> NDArray[np.int8]:
        """The best state, shape (n,)."""
        return self.samples[0]

    @property
    def energy(self) -> float:
        """The energy of the best state."""
        return float(self.energies[0])

    @property
    def gap(self) -> float:
        """The relative gap, see `gap`: 0 is optimal, infinite where there is no bound."""
        return self.certified.relative

    @property
    def absolute_gap(self) -> float:
        """The energy minus the lower bound."""
        return self.certified.absolute

    @property
    def proved(self) -> bool:
        """True if the best state is proved optimal, to the tolerance of `solvers.problem.gap`."""
        return self.certified.proved

    def to_sampleset(
        self, labels: Sequence[Any], vartype: dimod.Vartype = dimod.BINARY
    ) -> dimod.SampleSet:
        """A dimod `SampleSet`; ``info`` gains ``lower_bound``, ``gap`` and ``proved``."""
        states = self.samples if vartype is dimod.BINARY else 2 * self.samples - 1
        return dimod.SampleSet.from_samples(
            (states, list(labels)),
            energy=self.energies,
            vartype=vartype,
            info={
                **self.info,
                "lower_bound": self.lower_bound,
                "gap": self.gap,
                "proved": self.proved,
            },
            sort_labels=False,
        )

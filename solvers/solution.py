"""What a sampler answers: samples, their recomputed energies, and what is proved about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dimod
import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.problem import QuadraticProblem


@dataclass(frozen=True, eq=False)
class Solution:
    """Samples of one problem, best first.

    Attributes:
        samples: shape (reads, n), int8, one binary state a row.
        energies: shape (reads,), float64, computed from the problem, ascending.
        lower_bound: no feasible state has a lower energy; -inf when nothing is known.
        info: what the sampler has to say (sweeps, swaps, proved, timings), JSON-friendly.
    """

    samples: NDArray[np.int8]
    energies: NDArray[np.float64]
    lower_bound: float = -np.inf
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        problem: QuadraticProblem,
        samples: ArrayLike,
        *,
        lower_bound: float = -np.inf,
        info: Mapping[str, Any] | None = None,
    ) -> Solution:
        """Order samples by the energy that the problem itself gives them (ties keep order)."""
        states = np.atleast_2d(np.ascontiguousarray(samples, dtype=np.int8))
        energies = problem.energies(states)
        order = np.argsort(energies, kind="stable")
        return cls(states[order], energies[order], float(lower_bound), dict(info or {}))

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
        """(energy - lower_bound) / max(|energy|, |lower_bound|): 0 is proved optimal."""
        if not np.isfinite(self.lower_bound):
            return float("inf")
        difference = self.energy - self.lower_bound
        scale = max(abs(self.energy), abs(self.lower_bound))
        return 0.0 if difference <= 0 or scale == 0 else difference / scale

    def to_sampleset(
        self, labels: Sequence[Any], vartype: dimod.Vartype = dimod.BINARY
    ) -> dimod.SampleSet:
        """As dimod's `SampleSet`; ``info`` gains ``lower_bound`` and ``gap``."""
        states = self.samples if vartype is dimod.BINARY else 2 * self.samples - 1
        return dimod.SampleSet.from_samples(
            (states, list(labels)),
            energy=self.energies,
            vartype=vartype,
            info={**self.info, "lower_bound": self.lower_bound, "gap": self.gap},
            sort_labels=False,
        )

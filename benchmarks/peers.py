"""Samplers of other packages that qprune has no name for, as dimod samplers."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import dimod
import numpy as np


class SimulatedBifurcation(dimod.Sampler):
    """simulated-bifurcation's `minimize` (Ageron, Bouquet, Pugliese) in its ballistic default.

    Its matrix is made once for each model, as the other libraries find their models ready made.
    Its generator is torch's global one, which is left as it was.
    """

    parameters: ClassVar[dict[str, Any]] = {"num_reads": [], "num_steps": [], "seed": []}
    properties: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self._model: dimod.BinaryQuadraticModel | None = None
        self._arrays: Any = None

    def sample(
        self,
        bqm: dimod.BinaryQuadraticModel,
        num_reads: int = 10,
        num_steps: int = 10_000,
        seed: int | None = None,
    ) -> dimod.SampleSet:
        """Evolve ``num_reads`` agents for at most ``num_steps`` steps.

        Args:
            bqm: over the variables 0..n-1, binary.
            num_reads: agents, all of which are returned.
            num_steps: the package's ``max_steps``; agents that have converged stop earlier.
            seed: of this call.
        """
        import simulated_bifurcation as sb
        import torch

        if bqm is not self._model:
            self._model, self._arrays = bqm, _arrays(bqm)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Agents that have not converged are said in a warning at every call.
            warnings.simplefilter("ignore")
            if seed is not None:
                torch.manual_seed(seed)
            states, _ = sb.minimize(
                *self._arrays,
                domain="binary",
                agents=num_reads,
                max_steps=num_steps,
                best_only=False,
                verbose=False,
            )
        states = states.numpy().astype(np.int8)
        return dimod.SampleSet.from_samples_bqm((states, range(bqm.num_variables)), bqm)


def _arrays(bqm: dimod.BinaryQuadraticModel) -> Any:
    import torch

    linear, (row, column, biases), _ = bqm.to_numpy_vectors(variable_order=range(bqm.num_variables))
    matrix = np.zeros((linear.size, linear.size))
    matrix[row, column] = biases
    return torch.tensor(matrix).float(), torch.tensor(linear).float()

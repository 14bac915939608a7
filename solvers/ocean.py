"""D-Wave's samplers that run on this machine, and `neal`, each behind `ForeignSampler`.

`solvers.registry` calls these factories by name, so that nothing here is imported unasked.
"""

from __future__ import annotations

from typing import Any

import dimod

from solvers.errors import ProblemTooLargeError
from solvers.foreign import ForeignSampler

_HOUR_IN_MS = 3_600_000


def simulated_annealing() -> ForeignSampler:
    """Single-flip simulated annealing (`dwave.samplers.SimulatedAnnealingSampler`)."""
    from dwave.samplers import SimulatedAnnealingSampler

    return ForeignSampler(SimulatedAnnealingSampler(), name="sa")


def steepest_descent() -> ForeignSampler:
    """Single-flip steepest descent (`dwave.samplers.SteepestDescentSolver`)."""
    from dwave.samplers import SteepestDescentSolver

    return ForeignSampler(SteepestDescentSolver(), name="steepest")


def path_integral() -> ForeignSampler:
    """Simulated quantum annealing (`dwave.samplers.PathIntegralAnnealingSampler`)."""
    from dwave.samplers import PathIntegralAnnealingSampler

    return ForeignSampler(PathIntegralAnnealingSampler(), name="path-integral")


def rotor() -> ForeignSampler:
    """Annealing of planar rotors (`dwave.samplers.RotorModelAnnealingSampler`)."""
    from dwave.samplers import RotorModelAnnealingSampler

    return ForeignSampler(RotorModelAnnealingSampler(), name="rotor")


def neal() -> ForeignSampler:
    """`neal.SimulatedAnnealingSampler`, today a shell over D-Wave's local annealer."""
    import neal

    return ForeignSampler(neal.SimulatedAnnealingSampler(), name="neal")


def tabu() -> Tabu:
    """Multistart tabu search (`dwave.samplers.TabuSampler`) bounded by moves, not by the clock."""
    from dwave.samplers import TabuSampler

    return Tabu(TabuSampler(), name="tabu")


def tree() -> Tree:
    """Exact by tree decomposition (`dwave.samplers.TreeDecompositionSolver`)."""
    from dwave.samplers import TreeDecompositionSolver

    return Tree(TreeDecompositionSolver(), name="tree")


class Tabu(ForeignSampler):
    """D-Wave's tabu search, deterministic for a seed.

    By itself it stops after 20 ms of wall clock, so that a seed means little. Here a read is
    one search of ``max(200 n, 10000)`` moves with one restart of a quarter of that, unless
    ``timeout`` (ms) is given, which brings the clock back.
    """

    #: Moves per variable of the first search; 0.1 s at n = 1024.
    MOVES_PER_VARIABLE = 200

    def run(self, bqm: dimod.BinaryQuadraticModel, options: dict[str, Any]) -> dimod.SampleSet:
        if "timeout" not in options:
            by_moves = {
                "timeout": _HOUR_IN_MS,
                "num_restarts": 1,
                "coefficient_z_first": self.MOVES_PER_VARIABLE,
                "coefficient_z_restart": self.MOVES_PER_VARIABLE // 4,
                "lower_bound_z": 10_000,
            }
            options = by_moves | options
        return super().run(bqm, options)


class Tree(ForeignSampler):
    """D-Wave's tree decomposition: exact, for models of small treewidth only."""

    def run(self, bqm: dimod.BinaryQuadraticModel, options: dict[str, Any]) -> dimod.SampleSet:
        limit = self.child.properties["max_treewidth"]
        # A model has treewidth of at least its smallest degree; the library's own search for
        # an elimination order takes minutes on a dense model before it gives up.
        smallest = min(int(bqm.degree(v)) for v in bqm.variables)
        if smallest > limit:
            raise ProblemTooLargeError(
                f"tree: the model's treewidth is at least {smallest}, the solver's limit is "
                f"{limit}; use it for sparse models, or another sampler such as exact"
            )
        try:
            return super().run(bqm, options)
        except ValueError as error:
            if "treewidth" not in str(error):
                raise
            raise ProblemTooLargeError(
                f"tree: the model's treewidth exceeds the solver's limit of {limit}; "
                "use another sampler, or decompose"
            ) from error

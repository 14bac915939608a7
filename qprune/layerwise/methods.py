"""Pruning methods for one matrix: those of the literature, and the row samplers.

A method is a strategy with one method, `solve`, and declares its inputs: targets from the dense
network's outputs or from the present inputs, and inputs collected once for a block
or again after each group of matrices with the same input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from qprune.layerwise.budgets import Scope
from qprune.solve import Border
from solvers.arrays import Array, as_host
from solvers.row_refit import refit
from solvers.row_search import solve_rows
from solvers.row_starts import Start, admm, magnitude, obs_sweep, wanda
from solvers.rows import RowProblem


class Solved(NamedTuple):
    """Mask with the problem's exact counts, and values that are zero where it is False."""

    mask: Array
    values: Array


class Method(Protocol):
    """Protocol of a method that prunes one matrix.

    Attributes:
        scope: scope of the exact counts, where no structure is set.
        dense_targets: take targets from the dense network's outputs for the same tokens.
        by_group: collect inputs again after each group of matrices with the same input.
        damping: added to the diagonal of A = X X', as a share of its mean.
    """

    @property
    def scope(self) -> Scope: ...
    @property
    def dense_targets(self) -> bool: ...
    @property
    def by_group(self) -> bool: ...
    @property
    def damping(self) -> float: ...

    def solve(self, problem: RowProblem, *, compensate: bool, seed: int) -> Solved:
        """Choose the mask and, when compensating, the values."""
        ...


@dataclass(frozen=True)
class Magnitude:
    """Magnitude pruning: keeps the largest |w| of each matrix."""

    scope: Scope = "layer"
    dense_targets: bool = False
    by_group: bool = False
    damping: float = 0.0

    def solve(self, problem: RowProblem, *, compensate: bool, seed: int) -> Solved:
        return Solved(*magnitude(problem))


@dataclass(frozen=True)
class Wanda:
    """Wanda: keeps the largest |w_i| |X_i| of each row (Sun et al., arXiv 2306.11695, eq. 1)."""

    scope: Scope = "row"
    dense_targets: bool = False
    by_group: bool = False
    damping: float = 0.0

    def solve(self, problem: RowProblem, *, compensate: bool, seed: int) -> Solved:
        return Solved(*wanda(problem))


@dataclass(frozen=True)
class SparseGPT:
    """SparseGPT: one elimination sweep over the inputs (Frantar and Alistarh, arXiv 2301.00774)."""

    scope: Scope = "layer"
    dense_targets: bool = False
    by_group: bool = False
    damping: float = 0.0
    sweep_damping: float = 0.01
    block: int = 128

    def solve(self, problem: RowProblem, *, compensate: bool, seed: int) -> Solved:
        return Solved(*obs_sweep(problem, damping=self.sweep_damping, block=self.block))


@dataclass(frozen=True)
class Reconstruct:
    """Local search from a start: swaps within rows, trades between rows and refits.

    With `dense_targets`, and inputs collected again by group, the error is that of the outputs
    against the dense network's for the same tokens, so that a layer compensates for the
    pruning of the layers before it.

    Args:
        scope: counts over the whole matrix, or every row of it.
        dense_targets: see `Method`.
        by_group: see `Method`.
        damping: see `Method`.
        start: the mask to improve (`solvers.row_starts`); the default is ALPS's (Meng et al. 2024,
            arXiv 2406.07831).
        depth: depth of an oscillation (`solvers.row_search.solve_rows`): 4 reduces the error of
            a layer by about 1 %, and takes twice as long.
        max_rounds: largest number of rounds of swaps, trades and refit. Every row ends where no
            swap helps; more rounds trade more between rows, and gain a few tenths of a percent.
        num_threads: threads that share the rows; no effect on the answer.
    """

    scope: Scope = "layer"
    dense_targets: bool = True
    by_group: bool = True
    damping: float = 0.01
    start: Callable[[RowProblem], Start] = field(default=partial(admm, damping=0.0))
    depth: int = 0
    max_rounds: int = 2
    # Not in repr: a run may be resumed with another number.
    num_threads: int = field(default=1, repr=False, compare=False)

    def solve(self, problem: RowProblem, *, compensate: bool, seed: int) -> Solved:
        start = self.start(problem)
        solution = solve_rows(
            problem,
            mask=start.mask,
            values=start.values,
            compensate=compensate,
            depth=self.depth,
            max_rounds=self.max_rounds,
            num_threads=self.num_threads,
        )
        return Solved(solution.mask, solution.values)


@dataclass(frozen=True)
class SampledRows:
    """Sampler on every output row as one problem with its exact count, for comparison.

    The sampler chooses the mask as if kept values stayed at their targets (`RowProblem.
    row_as_problem`), never a worse one than the start's; then, when compensating, all kept values
    are refitted on the support. Over a matrix' own count, each row keeps as many as in the start.

    Args:
        sampler: a registered name, or any object with ``sample(bqm, ...) -> SampleSet``.
        sampler_options: options of every call.
        scope, dense_targets, by_group, damping, start: as in `Reconstruct`.

    Raises:
        SolverError: no such sampler or option.
    """

    sampler: Any = "relax"
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    scope: Scope = "layer"
    dense_targets: bool = True
    by_group: bool = True
    damping: float = 0.01
    start: Callable[[RowProblem], Start] = field(default=partial(admm, damping=0.0))

    def __post_init__(self) -> None:
        self._border()  # Wrong options are refused before a block's passes.

    def _border(self) -> Border:
        return Border.to(self.sampler, self.sampler_options)

    def solve(self, problem: RowProblem, *, compensate: bool, seed: int) -> Solved:
        border = self._border()
        mask = as_host(self.start(problem).mask).astype(bool)
        for row, kept in enumerate(mask):
            if kept.all() or not kept.any():
                continue
            asked = problem.row_as_problem(row, int(kept.sum()) if problem.budget.trades else None)
            key = np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(1)
            answer = border.solve(asked, (~kept).astype(np.int8), int(key[0]))
            mask[row] = answer.sample == 0
        chosen = problem.checked_mask(mask)
        values = problem.targets * chosen
        if compensate:
            values = refit(problem.gram, problem.targets, chosen, values)
        return Solved(chosen, values)


#: Names on the command line; "qprune" is "reconstruct" followed by the walk across the network.
METHODS: dict[str, Magnitude | Wanda | SparseGPT | Reconstruct] = {
    "magnitude": Magnitude(),
    "wanda": Wanda(),
    "sparsegpt": SparseGPT(),
    "reconstruct": Reconstruct(),
    "qprune": Reconstruct(),
}

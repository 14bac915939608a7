"""Forms of annealing, by the arrays that each keeps (fields, rows, factor), and their costs.

All forms walk the same states; they differ in what a proposal and a move cost. Costs are in
nanoseconds, measured on one core of a server processor (`python -m benchmarks.solvers_local
--only kernels` measures them again) and fixed here, so that a seed gives one answer anywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solvers.host.clock import Deadline
from solvers.problem.quadratic import LowRank, Sparse
from solvers.search.kernels.common import GUMBELS
from solvers.search.kernels.factor import lowrank_flip_metropolis, lowrank_swap_metropolis
from solvers.search.kernels.flip import flip_metropolis
from solvers.search.kernels.layout import Layout
from solvers.search.kernels.swap import arranged, swap_heat_bath, swap_metropolis
from solvers.search.runs import Read

Reals = NDArray[np.floating]

# A matrix of more bytes is read from main memory, a smaller one from the cache.
_CACHE_BYTES = 16e6
# Proposals that one heat bath of a row is worth: the size of its group over this number.
_GROUP_PER_PROPOSAL = 16
#: With more variables a sweep over whole rows takes too long between two looks at the clock.
LONGEST_GROUP = 8192


@dataclass(frozen=True, eq=False)
class Form(ABC):
    """One way to walk the states of a problem."""

    layout: Layout

    def kept(self, x: NDArray[np.int8]) -> Reals:
        """The array that the kernel keeps besides the state x, computed afresh: here the fields."""
        return self.layout.fields(x[None])[0]

    def anneal(self, read: Read, kept: Reals, temperatures: Reals) -> float:
        """One sweep per temperature; returns the share of single proposals that were taken."""
        before = read.tally[2]
        self._run(read, kept, temperatures.astype(self.layout.dtype))
        return (read.tally[2] - before) / max(1, temperatures.size * self.proposals)

    @abstractmethod
    def _run(self, read: Read, kept: Reals, temperatures: Reals) -> None:
        """Call the kernel."""

    @property
    def proposals(self) -> int:
        """Single proposals that a sweep makes or is worth."""
        return self.layout.half.size

    @property
    @abstractmethod
    def proposal(self) -> float:
        """Nanoseconds per proposal."""

    @property
    @abstractmethod
    def move(self) -> float:
        """Nanoseconds per accepted move, on top of its proposal."""

    def cost(self, acceptance: float) -> float:
        """Nanoseconds per accepted move, its proposals included, at this rate of ``acceptance``."""
        return self.proposal / max(acceptance, 1e-9) + self.move

    def sweep(self, acceptance: float) -> float:
        """Nanoseconds per sweep when ``acceptance`` of proposals are taken."""
        return max(1.0, self.proposals * max(acceptance, 1e-9) * self.cost(acceptance))

    @cached_property
    def row(self) -> float:
        """Nanoseconds to add one row of the matrix to the fields."""
        n = self.layout.half.size
        if isinstance(self.layout.problem.quadratic, Sparse):
            return 2.0 + self.layout.problem.quadratic.matrix.nnz / max(1, n)
        return 2.0 + (0.019 if self._in_cache else 0.05) * n * self.layout.dtype.itemsize

    @property
    def _in_cache(self) -> bool:
        n = self.layout.half.size
        sparse = isinstance(self.layout.problem.quadratic, Sparse)
        return sparse or n * n * self.layout.dtype.itemsize < _CACHE_BYTES


class FlipFields(Form):
    """Single flips, all fields kept."""

    @property
    def proposal(self) -> float:
        return 4.0

    @property
    def move(self) -> float:
        return self.row

    def _run(self, read: Read, kept: Reals, temperatures: Reals) -> None:
        matrix, half = self.layout.matrix, self.layout.half
        flip_metropolis(
            matrix, kept, half, read.x, temperatures, read.random, read.best, read.tally
        )


class SwapFields(Form):
    """Random swaps, all fields kept."""

    @property
    def proposal(self) -> float:
        return 8.0 if self._in_cache else 65.0

    @property
    def move(self) -> float:
        return 2 * self.row

    def _run(self, read: Read, kept: Reals, temperatures: Reals) -> None:
        matrix, half, starts = self.layout.matrix, self.layout.half, self.layout.starts
        swap_metropolis(
            matrix, kept, half, read.x, starts, temperatures, read.random, read.best, read.tally
        )


class SwapRows(SwapFields):
    """Heat-bath swaps that look at every partner of a variable at once, all fields kept."""

    @property
    def proposals(self) -> int:
        problem = self.layout.problem
        if problem.counts is None:
            return 0
        rows = np.minimum(problem.counts, problem.group_sizes - problem.counts).sum()
        return int(rows * self._proposals_per_row)

    @cached_property
    def _group(self) -> float:
        """Size of the group of a variable, on average."""
        sizes = self.layout.problem.group_sizes
        return float((sizes**2).sum() / max(1, sizes.sum()))

    @property
    def _proposals_per_row(self) -> float:
        return max(1.0, self._group / _GROUP_PER_PROPOSAL)

    def cost(self, acceptance: float) -> float:
        scan = 25.0 + self.row * self._group / max(1, self.layout.half.size)
        scan += 0.06 * self._group * self.layout.dtype.itemsize / 4
        return scan / min(1.0, self._proposals_per_row * max(acceptance, 1e-9)) + self.move

    def _run(self, read: Read, kept: Reals, temperatures: Reals) -> None:
        matrix, half, starts = self.layout.matrix, self.layout.half, self.layout.starts
        places, scores = arranged(read.x, starts), np.empty_like(half)
        fields, found = (matrix, kept, half), (read.best, read.tally)
        swap_heat_bath(
            *fields, read.x, starts, places, temperatures, read.random, GUMBELS, *found, scores
        )


class FactorFlips(Form):
    """Single flips on the factor of a low-rank problem."""

    def kept(self, x: NDArray[np.int8]) -> Reals:
        return self.layout.projection(x)

    @property
    def proposal(self) -> float:
        return 4.0 + 0.06 * self.layout.factor.shape[1]

    @property
    def move(self) -> float:
        return 5.0 + 0.05 * self.layout.factor.shape[1]

    def _run(self, read: Read, kept: Reals, temperatures: Reals) -> None:
        factor, linear, half = self.layout.factor, self.layout.linear, self.layout.half
        found = read.random, read.best, read.tally
        lowrank_flip_metropolis(factor, linear, half, kept, read.x, temperatures, *found)


class FactorSwaps(FactorFlips):
    """Random swaps on the factor of a low-rank problem."""

    @property
    def proposal(self) -> float:
        return 12.0 + 0.2 * self.layout.factor.shape[1]

    @property
    def move(self) -> float:
        return 10.0 + 0.3 * self.layout.factor.shape[1]

    def _run(self, read: Read, kept: Reals, temperatures: Reals) -> None:
        factor, linear, starts = self.layout.factor, self.layout.linear, self.layout.starts
        found = read.random, read.best, read.tally
        lowrank_swap_metropolis(factor, linear, kept, read.x, starts, temperatures, *found)


def forms_for(layout: Layout, deadline: Deadline | None = None) -> Sequence[Form]:
    """The forms that fit the problem, memory, and the time left."""
    counted = layout.problem.groups is not None
    with_fields: list[Form] = [SwapFields(layout)] if counted else [FlipFields(layout)]
    if counted and layout.half.size <= LONGEST_GROUP:
        with_fields.append(SwapRows(layout))
    if not isinstance(layout.problem.quadratic, LowRank):
        return with_fields
    with_factor = FactorSwaps(layout) if counted else FactorFlips(layout)
    return (
        [*with_fields, with_factor]
        if layout.affords_matrix(deadline or Deadline())
        else [with_factor]
    )


def cheapest(forms: Sequence[Form], acceptance: float) -> Form:
    """The form whose accepted moves cost least; the first on a tie."""
    return min(forms, key=lambda form: form.cost(acceptance))

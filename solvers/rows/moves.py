"""The two kinds of swap in rows that share a matrix, and the trades between rows.

With F = (w - w0) A, the gradient of a row's objective, and all other values held:

- pruning i changes the objective by      -w_i F_i + 1/2 w_i^2 A_ii,
- restoring j at t changes it by           t F_j + 1/2 t^2 A_jj, least at t = -F_j / A_jj, where it
  gains F_j^2 / (2 A_jj),
- doing both, by -w_i F_i + 1/2 w_i^2 A_ii - (F_j - w_i A_ij)^2 / (2 A_jj), since pruning i first
  moves F_j by -w_i A_ij.

(Twice these are the figures for the objective without its 1/2.) `HeldSearch` makes such swaps
and refits the kept values after each round of them. `ExactSearch` is stronger: it ends where
no exchange of one kept for one pruned weight improves a row *with all kept values refitted*.

Rows do not interact, so that a trade, which prunes in one and restores in another, changes the
objective by exactly the cost in the one minus the gain in the other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from solvers.host.clock import Deadline
from solvers.rows.exact import NO_MARGINALS, regular, settled_row
from solvers.rows.kernels import swap_row
from solvers.rows.problem import RowProblem
from solvers.rows.refit import Array, as_host, as_like, refit, safe_inverse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Marginals(NamedTuple):
    """The cheapest weight to prune and the best one to restore in every row.

    Attributes:
        cost: what pruning ``prune`` adds to the row's objective; inf where nothing is kept.
        prune: an input of every row.
        gain: what restoring ``restore`` takes off it; -inf where nothing is pruned.
        restore: an input of every row.
    """

    cost: Floats
    prune: Integers
    gain: Floats
    restore: Integers


def match(marginals: Marginals, tolerance: float) -> tuple[Integers, Integers]:
    """Rows that give a weight and rows that take one, paired; a row is in one pair at most.

    The row that gains most takes from the row that loses least, and so on while the gain
    exceeds the cost by more than ``tolerance``.

    Returns:
        (givers, takers), of equal length.
    """
    givers: list[int] = []
    takers: list[int] = []
    used = np.zeros(marginals.cost.size, dtype=bool)
    cheapest = iter(np.argsort(marginals.cost, kind="stable").tolist())
    for taker in np.argsort(-marginals.gain, kind="stable").tolist():
        if used[taker]:
            continue
        used[taker] = True
        giver = next((row for row in cheapest if not used[row]), None)
        if giver is None or not (marginals.gain[taker] - marginals.cost[giver] > tolerance):
            break
        used[giver] = True
        givers.append(giver)
        takers.append(taker)
    return np.array(givers, dtype=np.int64), np.array(takers, dtype=np.int64)


# Least improvement of a row, as a share of its energy when pruned entirely: in float64,
# and in the float32 of a device.
TOLERANCE = {"float64": 1e-10, "float32": 1e-6}

# Rounding error of a row's energy, as a share of the sum of its terms' sizes.
_ROUNDING = {"float64": 1e-15, "float32": 5e-7}
# Numbers read between two looks at the clock.
_READS_PER_LOOK = 1e8


class Search(Protocol):
    """Masks and values under improvement, in place."""

    mask: Array
    values: Array
    #: A trade between rows has to gain more than this.
    threshold: float

    def settle(self, rows: Integers, deadline: Deadline) -> tuple[int, Integers]:
        """Swap in ``rows`` until none improves: the swaps made, and the rows to settle again."""
        ...

    def marginals(self) -> Marginals:
        """The loss of every row by one weight fewer, and its gain by one more."""
        ...

    def trade(self, givers: Integers, prune: Integers, takers: Integers, restore: Integers) -> None:
        """Prune ``prune[k]`` in row ``givers[k]``, restore ``restore[k]`` in ``takers[k]``."""
        ...


def tolerances(problem: RowProblem) -> Array:
    """The improvement of each row that does not count, shape (rows,)."""
    dtype = str(problem.targets.dtype).removeprefix("torch.")
    energy = ((problem.targets @ problem.gram) * problem.targets).sum(-1)
    terms = (abs(problem.targets) * problem.gram.diagonal() ** 0.5).sum(-1) ** 2
    share = array_namespace(energy).maximum(
        TOLERANCE[dtype] * energy.clip(0.0, None), _ROUNDING[dtype] * terms
    )
    return 0.5 * share


def each_row(work: Callable[[int], int], rows: Integers, num_threads: int) -> Integers:
    """``work`` of every row, shared among threads (the kernels release the GIL)."""
    if num_threads == 1 or rows.size < 2:
        return np.array([work(r) for r in rows.tolist()], dtype=np.int64)
    with ThreadPoolExecutor(num_threads) as pool:
        return np.array(list(pool.map(work, rows.tolist())), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Restore:
    """The gain of restoring a weight of field f: curve f^2 - slope f - 1/2 slope^2 A_jj.

    Attributes:
        curve: 1 / (2 A_jj) where the value is the best one, 0 where it is given; shape (inputs,).
        slope: the given value, 0 where it is the best one; shape (rows, inputs).
    """

    curve: Array
    slope: Array

    @classmethod
    def of(cls, problem: RowProblem, compensate: bool) -> Restore:
        """At the one-dimensional optimum when compensating, else at the target."""
        curve = 0.5 * safe_inverse(problem.gram.diagonal())
        if compensate:
            return cls(curve, array_namespace(curve).zeros_like(problem.targets))
        return cls(0.0 * curve, problem.targets)


class HeldSearch:
    """Swaps with all other values held, then a refit of the rows that swapped (numba)."""

    def __init__(
        self,
        problem: RowProblem,
        mask: Array,
        values: Array,
        compensate: bool,
        num_threads: int = 1,
    ) -> None:
        self.problem = problem
        self.mask = mask | False
        self.values = values + 0.0
        self.field = (values - problem.targets) @ problem.gram
        self.diagonal = problem.gram.diagonal() + 0.0
        self.restore = Restore.of(problem, compensate)
        self.tolerance = tolerances(problem)
        self.threshold = float(self.tolerance.max()) if problem.num_rows else 0.0
        self._compensate = compensate
        self._threads = num_threads

    def settle(self, rows: Integers, deadline: Deadline) -> tuple[int, Integers]:
        if self._compensate:
            self._refit(rows)
        swaps = self._swap(rows, deadline)
        again = self._compensate or deadline.passed
        return int(swaps.sum()), rows[swaps > 0] if again else rows[:0]

    def marginals(self) -> Marginals:
        xp = array_namespace(self.values)
        infinite = xp.full_like(self.values, float("inf"))
        w, f, slope, diagonal = self.values, self.field, self.restore.slope, self.diagonal
        cost = xp.where(self.mask, w * (0.5 * w * diagonal - f), infinite)
        gain = f * (self.restore.curve * f - slope) - 0.5 * slope * slope * diagonal
        gain = xp.where(self.mask, -infinite, gain)
        prune, best = as_host(cost.argmin(-1)), as_host(gain.argmax(-1))
        every = np.arange(self.problem.num_rows)
        cost, gain = as_host(cost)[every, prune], as_host(gain)[every, best]
        return Marginals(cost.astype(np.float64), prune, gain.astype(np.float64), best)

    def trade(self, givers: Integers, prune: Integers, takers: Integers, restore: Integers) -> None:
        givers, prune, takers, restore = (
            as_like(index, self.values, "int64") for index in (givers, prune, takers, restore)
        )
        at = -2.0 * self.field[takers, restore] * self.restore.curve[restore]
        at = at + self.restore.slope[takers, restore]
        self.field[givers] -= self.values[givers, prune][:, None] * self.problem.gram[prune]
        self.field[takers] += at[:, None] * self.problem.gram[restore]
        self.values[givers, prune] = 0.0
        self.values[takers, restore] = at
        self.mask[givers, prune] = False
        self.mask[takers, restore] = True

    def _refit(self, rows: Integers) -> None:
        at = as_like(rows, self.values, "int64")
        gram, targets = self.problem.gram, self.problem.targets[at]
        self.values[at] = refit(gram, targets, self.mask[at], self.values[at])
        self.field[at] = (self.values[at] - targets) @ gram

    def _swap(self, rows: Integers, deadline: Deadline) -> Integers:
        inputs = self.problem.num_inputs
        run, tolerance = self.problem.counts.run(inputs), self.tolerance
        together = max(1, int(_READS_PER_LOOK / (1.0 + inputs * run)))

        def swap(row: int) -> int:
            slope, at = self.restore.slope[row], np.zeros(1, np.int64)
            state = self.problem.gram, self.values[row], self.field[row], self.mask[row]
            cost = np.where(self.mask[row], np.inf, 0.5 * slope * slope * self.diagonal)
            swaps, made = 0, together
            while made == together and not deadline.passed:
                made = swap_row(
                    *state, self.restore.curve, slope, cost, run, tolerance[row], together, at
                )
                swaps += made
            return swaps

        return each_row(swap, rows, self._threads)


class ExactSearch:
    """Swaps with all kept values refitted, from each row's tableau (numba)."""

    def __init__(
        self, problem: RowProblem, mask: Array, values: Array, num_threads: int = 1
    ) -> None:
        self.problem = problem
        self.mask = mask | False
        self.values = values + 0.0
        self.tolerance = tolerances(problem)
        self.threshold = float(self.tolerance.max()) if problem.num_rows else 0.0
        self._gram = regular(problem.gram)
        self._marginals = [NO_MARGINALS] * problem.num_rows
        self._threads = num_threads

    def settle(self, rows: Integers, deadline: Deadline) -> tuple[int, Integers]:
        targets, run = self.problem.targets, self.problem.counts.run(self.problem.num_inputs)
        left: list[int] = []

        def settle_row(row: int) -> int:
            if deadline.passed:
                left.append(row)
                return 0
            swaps, self.values[row], self._marginals[row] = settled_row(
                self._gram, targets[row], self.mask[row], run, self.tolerance[row], deadline
            )
            return swaps

        swaps = int(each_row(settle_row, rows, self._threads).sum())
        return swaps, np.array(sorted(left), dtype=np.int64)

    def marginals(self) -> Marginals:
        cost, prune, gain, restore = (
            np.array(column) for column in zip(*self._marginals, strict=True)
        )
        return Marginals(cost, prune, gain, restore)

    def trade(self, givers: Integers, prune: Integers, takers: Integers, restore: Integers) -> None:
        self.mask[givers, prune] = False
        self.mask[takers, restore] = True

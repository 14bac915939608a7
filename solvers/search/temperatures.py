"""Temperatures of an annealing run: estimated from the problem, or given."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from solvers.options import Positive, SamplerOptions, Sweeps
from solvers.problem.problem import Floats, QuadraticProblem

# Measured on pruning blocks, OR-Library, gka and G-set problems (`benchmarks/solvers_local.py`):
# hotter starts and colder ends lose time and improve nothing.
_HOT_SHARE_OF_MEAN = 0.25
_COLD_SHARE_OF_SMALL_FLIP = 1 / 8
_COLD_SHARE_OF_SMALL_SWAP = 1 / 2
_SMALL = 0.05
_SAMPLED_ROWS = 64

# With a time limit alone: rounds of reads of each length before the length doubles.
_ROUNDS_PER_LENGTH = 2
_MOST_SWEEPS = 1_000_000


class ScheduleOptions(SamplerOptions):
    """Options of samplers that anneal."""

    num_sweeps: Sweeps = Field(
        default=1000,
        description="temperatures, one sweep each (default 1000; growing with a time limit)",
    )
    beta_range: tuple[Positive, Positive] | None = Field(
        default=None,
        description="first and last inverse temperature (default: from the problem)",
    )
    schedule: Literal["geometric", "linear"] = Field(
        default="geometric", description="temperatures in between: geometric (default) or linear"
    )

    def temperatures(
        self, problem: QuadraticProblem, local_minimum: NDArray[np.int8], index: int
    ) -> Floats:
        """One temperature per sweep, hot to cold, shape (sweeps,).

        Args:
            problem: gives the scale of E.
            local_minimum: a state near a local minimum, shape (n,): the barriers around it decide.
            index: of the round of reads. Where these have no end sweeps grow, unless their number
                was given.
        """
        sweeps = self.num_sweeps
        if self.reads(1) is None and "num_sweeps" not in self.model_fields_set:
            grown = sweeps << (index // _ROUNDS_PER_LENGTH).bit_length()
            sweeps = min(grown, _MOST_SWEEPS)
        if self.beta_range is None:
            hot, cold = _range_at(problem, local_minimum)
        else:
            hot, cold = (1 / float(beta) for beta in self.beta_range)
        return (np.geomspace if self.schedule == "geometric" else np.linspace)(hot, cold, sweeps)


def _range_at(problem: QuadraticProblem, x: NDArray[np.int8]) -> tuple[float, float]:
    """(hot, cold) from the moves out of ``x``: the mean cost of all, and of the cheapest few."""
    if problem.groups is None:
        all_gains = smallest = _flip_gains(problem, x)
        share = _COLD_SHARE_OF_SMALL_FLIP
    else:
        all_gains, smallest = _swap_gains(problem, x)
        share = _COLD_SHARE_OF_SMALL_SWAP
    scale = np.abs(all_gains).max(initial=0.0)
    uphill = all_gains[all_gains > 1e-9 * scale]
    smallest = smallest[smallest > 1e-9 * scale]
    if not uphill.size:
        return 1.0, 1.0
    hot = _HOT_SHARE_OF_MEAN * uphill.mean()
    low = np.quantile(smallest, _SMALL) if smallest.size else uphill.min()
    return hot, min(hot, max(share * low, 1e-4 * hot))


def _flip_gains(problem: QuadraticProblem, x: NDArray[np.int8]) -> Floats:
    return (1.0 - 2.0 * x) * problem.fields(x)[0] + 0.5 * problem.quadratic.diagonal()


def _swap_gains(problem: QuadraticProblem, x: NDArray[np.int8]) -> tuple[Floats, Floats]:
    """(gains of all swaps, the least gain) of some variables spread over the problem."""
    assert problem.groups is not None
    own = _flip_gains(problem, x)
    sign = 1.0 - 2.0 * x
    rows = np.linspace(0, x.size - 1, min(x.size, _SAMPLED_ROWS)).astype(np.int64)
    gains: list[Floats] = []
    for i in rows:
        partners = (problem.groups == problem.groups[i]) & (x != x[i])
        pair = own + own[i] + sign * sign[i] * problem.quadratic.row(int(i))
        if partners.any():
            gains.append(pair[partners])
    if not gains:
        return np.zeros(0), np.zeros(0)
    return np.concatenate(gains), np.array([gain.min() for gain in gains])

"""Temperatures of an annealing run: estimated from the problem, or given as ``beta_range``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.errors import InvalidOptionError
from solvers.problem.problem import Floats, QuadraticProblem

# Measured on pruning blocks, OR-Library, gka and G-set problems (`benchmarks/solvers_local.py`):
# hotter starts and colder ends lose time and improve nothing.
_HOT_SHARE_OF_MEAN = 0.25
_COLD_SHARE_OF_SMALL_FLIP = 1 / 8
_COLD_SHARE_OF_SMALL_SWAP = 1 / 2
_SMALL = 0.05
_SAMPLED_ROWS = 64

SCHEDULES = {"geometric": np.geomspace, "linear": np.linspace}


def temperatures_for(
    problem: QuadraticProblem,
    local_minimum: NDArray[np.int8],
    num_sweeps: int,
    beta_range: Sequence[float] | None,
    schedule: str,
) -> Floats:
    """One temperature per sweep, hot to cold, shape (num_sweeps,).

    Args:
        problem: gives the scale of E.
        local_minimum: a state near a local minimum, shape (n,): the barriers around it decide.
        num_sweeps: number of temperatures.
        beta_range: first and last inverse temperature, in units of 1 / E; None estimates them.
        schedule: "geometric" or "linear" between the two.

    Raises:
        InvalidOptionError: ``beta_range`` is not two positive numbers, or an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise InvalidOptionError(
            f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}"
        )
    hot, cold = (
        _range_at(problem, local_minimum) if beta_range is None else _checked_range(beta_range)
    )
    return SCHEDULES[schedule](hot, cold, num_sweeps)


def _checked_range(beta_range: Sequence[float]) -> tuple[float, float]:
    try:
        first, last = (float(beta) for beta in beta_range)
    except (TypeError, ValueError):
        first = last = -1.0
    if not (0 < first < np.inf and 0 < last < np.inf):
        raise InvalidOptionError(
            f"beta_range must be two positive inverse temperatures, not {beta_range!r}"
        )
    return 1 / first, 1 / last


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
    gains = []
    for i in rows:
        partners = (problem.groups == problem.groups[i]) & (x != x[i])
        pair = own + own[i] + sign * sign[i] * problem.quadratic.row(int(i))
        if partners.any():
            gains.append(pair[partners])
    if not gains:
        return np.zeros(0), np.zeros(0)
    return np.concatenate(gains), np.array([gain.min() for gain in gains])

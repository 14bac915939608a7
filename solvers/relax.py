"""The default sampler: convex relaxation, rounding, swap descent, a short warm annealing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.bounds import Relaxation, relax_convex
from solvers.convexify import convexify
from solvers.errors import InvalidOptionError
from solvers.greedy import descend
from solvers.kernels import GUMBELS, random_states_for
from solvers.kernels_flip import flip_metropolis
from solvers.kernels_swap import swap_heat_bath
from solvers.layout import Layout, search_dtype
from solvers.problem import Integers, QuadraticProblem
from solvers.quadratic import Dense, Floats, Sparse
from solvers.restrict import restricted
from solvers.sampler import CountingSampler, Deadline, checked_states, positive_int
from solvers.solution import Solution

# Variables that annealing works on: at least this many, and so many per fractional one.
_CORE = 256
_CORE_PER_FRACTIONAL = 6
# Beyond this a sparse problem is annealed as it is: its core in full would not pay.
_LARGEST_CORE = 2000
# First temperature in units of the gap per fractional variable, and its ratio to the last.
_HOT = 2.0
_COOLING = 50.0


class Relax(CountingSampler):
    """Convex relaxation, rounding, descent, a short warm annealing; answers with a lower bound.

    The relaxation leaves few variables in doubt. Only those whose reduced cost does not already
    rule out a better state are annealed, from the rounded relaxation, at temperatures that its
    gap sets. Problems that are not convex get a larger diagonal first; ``info["convexified"]``
    says so, and their bound is weaker.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.ones((3, 3)), counts=2)
        >>> solution = Relax().sample_problem(problem, seed=0)
        >>> solution.sample.tolist(), bool(solution.lower_bound <= solution.energy)
        ([0, 1, 1], True)
    """

    options: ClassVar = {
        "num_reads": "anneals: from the rounded relaxation, then from random roundings (default 1)",
        "num_sweeps": "sweeps of each (default 200; 0 for descent only)",
        "tolerance": "relative gap to which the relaxation is solved (default 1e-4)",
        "seed": "seed of roundings and moves",
        "initial_states": "states, shape (k, n); the best of them and the rounding is the start",
        "time_limit": "seconds after which the best so far is returned",
    }

    @property
    def properties(self) -> dict[str, Any]:
        return {**super().properties, "bound": True}

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        num_reads: int = 1,
        num_sweeps: int = 200,
        tolerance: float = 1e-4,
        seed: int | None = None,
        initial_states: ArrayLike | None = None,
        time_limit: float | None = None,
    ) -> Solution:
        """Relax, round, improve. An interrupt ends it early with the best state so far.

        Raises:
            InvalidOptionError: an option's value makes no sense; the message says which and why.
        """
        num_reads = positive_int("num_reads", num_reads)
        if num_sweeps != int(num_sweeps) or num_sweeps < 0:
            raise InvalidOptionError(f"num_sweeps must be a whole number from 0, not {num_sweeps}")
        if not tolerance > 0:
            raise InvalidOptionError(f"tolerance must be above 0, not {tolerance}")
        deadline = Deadline(time_limit)
        given = checked_states(problem, initial_states)
        convex = convexify(problem)
        relaxation = relax_convex(convex, tolerance=tolerance, deadline=deadline)
        start = rounded(problem, convex.unsorted(relaxation.preference))
        candidates = start[None] if given is None else np.concatenate([start[None], given])
        start = candidates[problem.energies(candidates).argmin()]
        answers = np.repeat(start[None], num_reads, axis=0)
        info: dict[str, Any] = {
            "newton_steps": relaxation.steps,
            "fractional": relaxation.num_fractional,
            "relaxed_energy": relaxation.energy,
            "convexified": convex.method,
        }
        formed = _formed(problem, relaxation)
        try:
            for index, better in _improved(
                formed, relaxation, start, num_reads, int(num_sweeps), seed
            ):
                answers[index] = better
                if deadline.passed:
                    break
        except KeyboardInterrupt:
            info["interrupted"] = True
        return Solution.of(problem, answers, lower_bound=relaxation.lower_bound, info=info)


def _formed(problem: QuadraticProblem, relaxation: Relaxation) -> QuadraticProblem:
    """The problem with Q in full where the relaxation has formed it, so that it is done once."""
    convex = relaxation.convex
    same = convex.order is None and not convex.method and isinstance(convex.quadratic, Dense)
    if not same:
        return problem
    return QuadraticProblem(
        problem.linear, convex.quadratic, problem.offset, problem.groups, problem.counts
    )


def rounded(problem: QuadraticProblem, preference: Floats) -> NDArray[np.int8]:
    """The state with exact counts that takes the largest of ``preference``, shape (n,).

    Without counts: those above 1/2.
    """
    if problem.groups is None or problem.counts is None:
        return (preference > 0.5).astype(np.int8)
    order = np.lexsort((-preference, problem.groups))
    group = problem.groups[order]
    rank = np.arange(order.size) - (np.cumsum(problem.group_sizes) - problem.group_sizes)[group]
    state = np.zeros(order.size, np.int8)
    state[order[rank < problem.counts[group]]] = 1
    return state


def _improved(
    problem: QuadraticProblem,
    relaxation: Relaxation,
    start: NDArray[np.int8],
    num_reads: int,
    num_sweeps: int,
    seed: int | None,
) -> Iterator[tuple[int | slice, NDArray[np.int8]]]:
    """Better states for the answers of an index: all get the descended start, then each its own."""
    keep = _core(problem, relaxation, problem.energy(start))
    if keep.size == 0:
        return
    part = _part(problem, start, keep)
    x = descend(part, start[keep][None])[0]
    base = start.copy()
    base[keep] = x
    yield slice(None), base
    energy = part.energy(x)
    if not num_sweeps and num_reads == 1:
        return
    # The better state rules out more.
    inside = np.isin(keep, _core(problem, relaxation, energy))
    part, x, keep = restricted(part, x, np.flatnonzero(inside)), x[inside], keep[inside]
    temperatures = _temperatures(relaxation, energy, num_sweeps)
    layout = Layout.of(part, search_dtype(part))
    preference = relaxation.convex.unsorted(relaxation.preference)[keep]
    rng = np.random.default_rng(seed)
    for index, random in enumerate(random_states_for(np.random.SeedSequence(seed), num_reads)):
        if index:
            # Rounds a variable up about with probability x_i.
            x = rounded(part, preference + rng.uniform(-0.5, 0.5, keep.size))
        better = base.copy()
        better[keep] = descend(part, _annealed(layout, x, temperatures, random)[None])[0]
        yield index, better


def _core(problem: QuadraticProblem, relaxation: Relaxation, energy: float) -> Integers:
    """The variables worth changing: those that a state better than ``energy`` may differ in.

    Where that is still many, the ones of least reduced cost.
    """
    n = problem.num_variables
    costs = relaxation.convex.unsorted(relaxation.tangent.reduced_costs)
    keep = np.flatnonzero(costs <= max(0.0, energy - relaxation.lower_bound))
    most = max(_CORE, _CORE_PER_FRACTIONAL * relaxation.num_fractional)
    if isinstance(problem.quadratic, Sparse) and min(most, n) > _LARGEST_CORE:
        return np.arange(n)
    if keep.size > most:
        keep = np.sort(keep[np.argpartition(costs[keep], most)[:most]])
    return keep


def _part(problem: QuadraticProblem, state: NDArray[np.int8], keep: Integers) -> QuadraticProblem:
    """The problem on ``keep``, in full unless it is sparse and all of it."""
    if keep.size == problem.num_variables and isinstance(problem.quadratic, Sparse):
        return problem
    part = restricted(problem, state, keep)
    return QuadraticProblem(
        part.linear, Dense.trusted(part.quadratic.dense()), part.offset, part.groups, part.counts
    )


def _temperatures(relaxation: Relaxation, energy: float, num_sweeps: int) -> Floats:
    """From a multiple of the gap per fractional variable down to next to nothing."""
    gap = max(energy - relaxation.lower_bound, 1e-9 * abs(energy), 1e-300)
    hot = _HOT * gap / max(1, relaxation.num_fractional)
    return np.geomspace(hot, hot / _COOLING, num_sweeps)


def _annealed(
    layout: Layout, state: NDArray[np.int8], temperatures: Floats, random: NDArray[np.uint64]
) -> NDArray[np.int8]:
    """The best state of one annealing from ``state``."""
    x = layout.sorted(state)
    field = layout.fields(x[None])[0]
    best, tally = x.copy(), np.zeros(3)
    walk = (layout.matrix, field, layout.half, x)
    schedule = temperatures.astype(layout.dtype)
    if layout.problem.groups is None:
        flip_metropolis(*walk, schedule, random, best, tally)
    else:
        scores = np.empty(max(1, x.size), layout.dtype)
        swap_heat_bath(*walk, layout.starts, schedule, random, GUMBELS, best, tally, scores)
    return layout.unsorted(best)

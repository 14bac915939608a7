"""The default sampler of pruning: convex relaxation, rounding, descent, a short warm annealing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from solvers.convex.bounds import Relaxation, pass_seconds, relax_convex
from solvers.convex.convexify import convexify
from solvers.convex.presolve import Presolved, extreme, times_power, without_choice
from solvers.host.clock import Deadline
from solvers.options import Count, Positive, SamplerOptions, SweepsIfAny
from solvers.problem.gap import gap_between
from solvers.problem.parts import restricted
from solvers.problem.problem import Integers, QuadraticProblem
from solvers.problem.quadratic import Dense, Floats, Sparse
from solvers.problem.solution import Solution
from solvers.sampler import States
from solvers.search.forms import LONGEST_GROUP
from solvers.search.kernels.common import GUMBELS, random_states_for
from solvers.search.kernels.flip import flip_metropolis
from solvers.search.kernels.layout import Layout, search_dtype
from solvers.search.kernels.swap import arranged, swap_heat_bath, swap_metropolis
from solvers.search.runs import Answers
from solvers.search.timed import TimedSampler, descend

# Variables that are annealed: at least this many, and so many per fractional one.
_CORE = 256
_CORE_PER_FRACTIONAL = 6
# Variables; a larger sparse problem is annealed whole: a dense core would take longer.
_LARGEST_CORE = 2000
# First temperature in units of the gap per fractional variable, and its ratio to the last.
_HOT = 2.0
_COOLING = 50.0
#: With less time than so many passes over the matrix take, nothing is relaxed.
FEWEST_PASSES = 16
# Numbers read between two looks at the clock, about.
_READS_PER_LOOK = 20_000_000


class RelaxOptions(SamplerOptions):
    """Options of `Relax`."""

    num_reads: Count | None = Field(
        default=None,
        description="anneals: from the rounded relaxation, then from random roundings "
        "(default 1; with a time limit, as many as fit)",
    )
    num_sweeps: SweepsIfAny = Field(
        default=200, description="sweeps of each (default 200; 0 for descent only)"
    )
    tolerance: Positive = Field(
        default=1e-4, description="gap to which the relaxation is solved (default 1e-4)"
    )


class Relax(TimedSampler):
    """Convex relaxation, rounding, descent, a short warm annealing; answers with a lower bound.

    The relaxation leaves few variables undecided. Only those whose reduced cost does not already
    rule out a better state are annealed, from the rounded relaxation, at temperatures that its
    gap sets. Problems that are not convex get a larger diagonal first; ``info["convexified"]``
    says so, and their bound is weaker.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.ones((3, 3)), counts=2)
        >>> solution = Relax().sample_problem(problem, seed=0)
        >>> solution.sample.tolist(), bool(solution.lower_bound <= solution.energy)
        ([0, 1, 1], True)
    """

    Options = RelaxOptions

    bounds = True

    def _search(
        self,
        problem: QuadraticProblem,
        asked: RelaxOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        return relax_and_round(problem, asked, given, deadline)


def relax_and_round(
    problem: QuadraticProblem, asked: RelaxOptions, given: States | None, deadline: Deadline
) -> Solution:
    """The solution of `Relax`; ``given`` are its initial states, shape (k, n)."""
    power = extreme(problem)
    if power:
        found = relax_and_round(times_power(problem, -power), asked, given, deadline)
        bound = float(np.ldexp(found.lower_bound, power))
        return Solution.of(problem, found.samples, lower_bound=bound, info=found.info)
    decided = without_choice(problem)
    if decided is not None or deadline.remaining < FEWEST_PASSES * pass_seconds(problem.quadratic):
        return _at_once(problem, decided, asked, given)
    convex = convexify(problem, deadline)
    relaxation = relax_convex(convex, tolerance=asked.tolerance, deadline=deadline)
    start = rounded(problem, convex.unsorted(relaxation.preference))
    candidates = start[None] if given is None else np.concatenate([start[None], given])
    start = candidates[problem.energies(candidates).argmin()]
    info: dict[str, Any] = {
        "newton_steps": relaxation.steps,
        "fractional": relaxation.num_fractional,
        "relaxed_energy": relaxation.energy,
        "convexified": convex.method,
    }
    formed = _formed(problem, relaxation)
    num_reads = asked.reads(1)
    answers = Answers(problem, num_reads)
    best = np.inf
    for index, state in enumerate(_improved(formed, relaxation, start, asked, deadline)):
        energy = answers.add(index, state)
        if deadline.passed:
            break
        if num_reads is None and energy < best:
            best = energy
            if gap_between(problem, best, relaxation.lower_bound).proved:
                break
    # A proved optimum needs no second read.
    while num_reads is not None and answers.begun < num_reads and not deadline.passed:
        answers.repeat()
    return answers.solution(info, relaxation.lower_bound)


def _at_once(
    problem: QuadraticProblem, decided: Presolved | None, asked: RelaxOptions, given: States | None
) -> Solution:
    """The solution of a problem that needs no search, or has no time for one."""
    info: dict[str, Any] = {"convexified": ""}
    if decided is None:
        states = rounded(problem, -problem.linear)[None] if given is None else given
        best = states[[int(problem.energies(states).argmin())]]
        return Solution.of(problem, best, info=info)
    state = decided.lift(np.zeros((1, 0), np.int8))
    bound = problem.energy(state[0]) - decided.slack
    return Solution.of(
        problem, np.repeat(state, asked.reads(1) or 1, axis=0), lower_bound=bound, info=info
    )


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
    asked: RelaxOptions,
    deadline: Deadline,
) -> Iterator[NDArray[np.int8]]:
    """Better states than ``start``, one for each read; one alone where it is proved optimal."""
    keep = _core(problem, relaxation, problem.energy(start))
    if keep.size == 0 or deadline.passed:
        yield start
        return
    part = _part(problem, start, keep)
    x = descend(part, start[keep][None], deadline=deadline)[0]
    base = start.copy()
    base[keep] = x
    energy = part.energy(x)
    num_reads = asked.reads(1)
    if (not asked.num_sweeps and num_reads == 1) or deadline.passed:
        yield base
        return
    # A better state fixes more variables.
    inside = np.isin(keep, _core(problem, relaxation, energy))
    part, x, keep = restricted(part, x, np.flatnonzero(inside)), x[inside], keep[inside]
    if keep.size == 0:
        yield base
        return
    temperatures = _temperatures(relaxation, energy, asked.num_sweeps)
    layout = Layout.of(part, search_dtype(part))
    descent = Layout.of(part)
    preference = relaxation.convex.unsorted(relaxation.preference)[keep]
    rng, for_kernels = np.random.default_rng(asked.seed), np.random.SeedSequence(asked.seed)
    for index in count() if num_reads is None else range(num_reads):
        random = random_states_for(for_kernels, 1)[0]
        if index:
            # Rounds a variable up with probability x_i, about.
            x = rounded(part, preference + rng.uniform(-0.5, 0.5, keep.size))
        found = _annealed(layout, x, temperatures, random, deadline)
        found = descend(part, found[None], descent, deadline)[0]
        better = base.copy()
        if part.energy(found) < energy:
            better[keep] = found
        yield better


def _core(problem: QuadraticProblem, relaxation: Relaxation, energy: float) -> Integers:
    """The variables to anneal: those in which a state better than ``energy`` may differ.

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
    """Temperatures from a multiple of the gap per fractional variable to a small share of it."""
    gap = max(energy - relaxation.lower_bound, 1e-9 * abs(energy), 1e-300)
    hot = _HOT * gap / max(1, relaxation.num_fractional)
    return np.geomspace(hot, hot / _COOLING, num_sweeps)


def _annealed(
    layout: Layout,
    state: NDArray[np.int8],
    temperatures: Floats,
    random: NDArray[np.uint64],
    deadline: Deadline,
) -> NDArray[np.int8]:
    """The best state of one annealing from ``state``."""
    x = layout.sorted(state)
    field = layout.fields(x[None])[0]
    best, tally = x.copy(), np.zeros(3)
    walk = (layout.matrix, field, layout.half, x)
    schedule = temperatures.astype(layout.dtype)
    scores = np.empty(max(1, x.size), layout.dtype)
    places = arranged(x, layout.starts)
    step = max(1, _READS_PER_LOOK // (1 + x.size * x.size))
    for begin in range(0, schedule.size, step):
        if deadline.passed:
            break
        now = schedule[begin : begin + step]
        if layout.problem.groups is None:
            flip_metropolis(*walk, now, random, best, tally)
        elif x.size > LONGEST_GROUP:
            swap_metropolis(*walk, layout.starts, now, random, best, tally)
        else:
            swap_heat_bath(*walk, layout.starts, places, now, random, GUMBELS, best, tally, scores)
    return layout.unsorted(best)

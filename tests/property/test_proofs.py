"""No proof is false and no bound above the optimum: many small problems against enumeration."""

import dimod
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_problems import check_answer, odd_problem, optimum_of

from solvers.composites.roof import RoofDuality
from solvers.convex.exact import Enumeration, Exact
from solvers.convex.relax import Relax
from solvers.problem.gap import rounding
from solvers.problem.problem import QuadraticProblem

# Of ten thousand problems: those whose states are equal but for rounding, not seen as such.
FEW = 10


def checked(seeds):
    """The numbers of the problems that `Exact` did not prove."""
    unproved = []
    exact, relax, every = Exact(), Relax(), Enumeration()
    for seed in seeds:
        problem = odd_problem(seed)
        optimum = optimum_of(problem)
        try:
            check_answer(problem, every.sample_problem(problem), optimum)
            check_answer(problem, relax.sample_problem(problem, seed=0, num_sweeps=5), optimum)
            solution = exact.sample_problem(problem, seed=0, num_reads=1)
            check_answer(problem, solution, optimum)
        except Exception as error:
            raise AssertionError(f"problem {seed}: {error}") from error
        if not solution.proved:
            unproved.append(seed)
    return unproved


@pytest.mark.filterwarnings("error")
def test_ten_thousand_problems_of_every_kind():
    assert len(checked(range(10_000))) <= FEW


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_hundred_thousand_problems_of_every_kind(part):
    assert len(checked(range(10_000 * part, 10_000 * (part + 1)))) <= FEW


def changed(problem, seed):
    """The same problem in other words: (problem, states of it as states of the first, factor)."""
    rng = np.random.default_rng(seed)
    n = problem.num_variables
    order = rng.permutation(n)
    factor, constant = 2.0 ** int(rng.integers(-40, 40)), float(rng.choice([0.0, 1.5, -1e12]))
    groups, counts = problem.groups, problem.counts
    if groups is not None:
        names = rng.permutation(problem.num_groups)
        groups, counts = names[groups[order]], counts[np.argsort(names)]
    matrix = problem.quadratic.dense()[np.ix_(order, order)] * factor
    moved = QuadraticProblem(
        problem.linear[order] * factor, matrix, problem.offset * factor + constant, groups, counts
    )
    if rng.random() < 0.5:
        model = moved.to_bqm().change_vartype(dimod.SPIN, inplace=False)
        moved = QuadraticProblem.from_bqm(model, cardinality=counts, groups=groups)
    return moved, np.argsort(order), factor


@pytest.mark.parametrize(
    ("sampler", "options", "examples"),
    [
        (Exact(), {"num_reads": 1}, 150),
        (Relax(), {"num_sweeps": 5}, 150),
        (Enumeration(), {}, 100),
        (RoofDuality("exact"), {}, 6),
    ],
    ids=["exact", "relax", "enumerate", "roof-duality"],
)
def test_other_words_change_nothing_but_what_they_must(sampler, options, examples):
    """A constant, a factor, an order, names of groups, spins: what is proved stays so."""

    @given(st.integers(0, 10**6), st.integers(0, 10**6))
    @settings(max_examples=examples, deadline=None)
    def check(seed, other):
        problem = odd_problem(seed)
        problem = problem.with_linear(problem.linear, 0.0)
        moved, back, factor = changed(problem, other)
        here = sampler.sample_problem(problem, **options)
        there = sampler.sample_problem(moved, **options)
        # Spins and an order of its own round anew.
        error = rounding(problem) + rounding(moved) / factor
        energy = problem.energy(there.sample[back])
        assert problem.feasible(there.samples[:, back]).all()
        if here.proved and there.proved:
            assert energy == pytest.approx(here.energy, abs=error)
        if isinstance(sampler, Enumeration):
            assert here.proved
            assert there.proved
        optimum = optimum_of(problem)
        assert here.lower_bound <= optimum + error
        check_answer(moved, there, optimum_of(moved))

    check()

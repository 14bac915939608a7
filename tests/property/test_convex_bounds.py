"""Bounds never lie, relaxations are optimal, branch and bound agrees with enumeration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize

from solvers.convex.bounds import relax
from solvers.convex.exact import Enumeration, Exact
from solvers.convex.relax import Relax
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import LowRank

KINDS = ("low_rank", "dense", "no_diagonal", "indefinite", "zero", "dead_columns", "ties")


def make(kind: str, size: int, num_groups: int, scale: float, seed: int) -> QuadraticProblem:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(max(1, size // 2), size)) * rng.exponential(size=size)
    linear = scale * rng.normal(size=size)
    if kind == "dead_columns":
        factor[:, ::2] = 0.0
    if kind == "ties":
        factor, linear = np.rint(factor), np.zeros(size)
    if kind in ("low_rank", "dead_columns", "ties"):
        quadratic = LowRank(factor)
    else:
        quadratic = factor.T @ factor
        if kind == "no_diagonal":
            np.fill_diagonal(quadratic, 0.0)
        if kind == "indefinite":
            quadratic = rng.normal(size=(size, size))
            quadratic = quadratic + quadratic.T
        if kind == "zero":
            quadratic = np.zeros((size, size))
    if num_groups == 0:
        return QuadraticProblem(linear, quadratic, offset=1.5)
    groups = rng.integers(0, num_groups, size)
    counts = [int(rng.integers(0, (groups == g).sum() + 1)) for g in range(num_groups)]
    return QuadraticProblem(linear, quadratic, 1.5, groups, counts)


problems = st.builds(
    make,
    st.sampled_from(KINDS),
    st.integers(0, 11),
    st.integers(0, 3),
    st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    st.integers(0, 10_000),
)


@given(problems)
@settings(max_examples=80, deadline=None)
def test_no_bound_exceeds_the_optimum(problem):
    optimum = Enumeration().sample_problem(problem).energy
    rough = relax(problem, tolerance=0.5)
    fine = relax(problem, tolerance=1e-8)
    ceiling = optimum + 1e-12 * abs(optimum)
    assert rough.lower_bound <= ceiling
    assert fine.lower_bound <= ceiling
    answer = Relax().sample_problem(problem, seed=0)
    assert answer.lower_bound <= ceiling <= answer.energy + 1e-9 * (1 + abs(optimum))
    assert problem.feasible(answer.samples).all()


@given(problems)
@settings(max_examples=80, deadline=None)
def test_reduced_costs_hold_for_every_state(problem):
    relaxation = relax(problem)
    convex, tangent = relaxation.convex, relaxation.tangent
    states = (np.arange(2**problem.num_variables)[:, None] >> np.arange(problem.num_variables)) & 1
    states = states[problem.feasible(states)]
    energies = problem.energies(states)
    least = tangent.bound + np.where(
        states == convex.unsorted(tangent.vertex), 0.0, convex.unsorted(tangent.reduced_costs)
    )
    assert (least.max(axis=1, initial=-np.inf) <= energies + 1e-9 * (1 + np.abs(energies))).all()


@given(problems)
@settings(max_examples=80, deadline=None)
def test_branch_and_bound_agrees_with_enumeration(problem):
    optimum = Enumeration().sample_problem(problem)
    solution = Exact().sample_problem(problem, num_reads=1, seed=0)
    assert problem.feasible(solution.samples).all()
    assert solution.info["proved"]
    assert solution.energy == pytest.approx(optimum.energy, rel=2e-6, abs=1e-12)
    assert solution.lower_bound <= optimum.energy + 1e-12 * abs(optimum.energy)


@pytest.mark.parametrize("num_groups", [0, 1, 4, 30])
@pytest.mark.parametrize("rank", [5, 60])
def test_relaxation_is_optimal(num_groups, rank):
    rng = np.random.default_rng(num_groups + rank)
    size = 60
    factor = rng.normal(size=(rank, size)) * rng.exponential(size=size)
    groups = None if num_groups == 0 else np.arange(size) % num_groups
    counts = None if groups is None else np.bincount(groups) // 2
    problem = QuadraticProblem(rng.normal(size=size), LowRank(factor), groups=groups, counts=counts)
    relaxation = relax(problem, tolerance=1e-9)
    x = relaxation.convex.unsorted(relaxation.x)
    assert relaxation.energy == pytest.approx(problem.energy(x), rel=1e-9)
    assert relaxation.energy - relaxation.lower_bound <= 1e-7 * abs(relaxation.energy)
    assert x.min() >= 0
    assert x.max() <= 1
    constraints = []
    if groups is not None:
        one_hot = (groups == np.arange(num_groups)[:, None]).astype(float)
        assert one_hot @ x == pytest.approx(counts, abs=1e-9)
        constraints = [LinearConstraint(one_hot, counts, counts)]
    peer = minimize(
        problem.energy,
        np.full(size, 0.5),
        jac=lambda y: problem.fields(y)[0],
        bounds=[(0, 1)] * size,
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert relaxation.energy <= peer.fun + 1e-6 * abs(peer.fun)
    assert relaxation.lower_bound <= peer.fun + 1e-9 * abs(peer.fun)


@pytest.mark.parametrize("kind", ["low_rank", "dense", "no_diagonal", "sparse", "groups", "box"])
def test_working_set_on_larger_problems(kind):
    """Past the size where all variables are worked on at once; against a far tighter solve."""
    rng = np.random.default_rng(3)
    size = 500
    factor = rng.normal(size=(150, size)) * rng.exponential(size=size)
    groups, counts, quadratic = None, 250, LowRank(factor)
    if kind in ("dense", "no_diagonal"):
        quadratic = factor.T @ factor
        if kind == "no_diagonal":
            np.fill_diagonal(quadratic, 0.0)
    if kind == "sparse":
        from scipy import sparse

        banded = np.eye(size) * 2 - np.eye(size, k=1) - np.eye(size, k=-1)
        quadratic = sparse.csr_array(banded)
    if kind == "groups":
        groups, counts = rng.permutation(np.arange(size) // 4), np.full(size // 4, 2)
    if kind == "box":
        counts = None
    problem = QuadraticProblem(5 * rng.normal(size=size), quadratic, groups=groups, counts=counts)
    usual, tight = relax(problem), relax(problem, tolerance=1e-8)
    x = usual.convex.unsorted(usual.x)
    gap = usual.energy - usual.lower_bound
    assert gap <= 1.1e-4 * abs(usual.energy)
    assert tight.lower_bound <= usual.energy + 1e-9 * abs(usual.energy)
    assert usual.lower_bound <= tight.energy + 1e-9 * abs(tight.energy)
    if kind != "no_diagonal":
        assert usual.energy == pytest.approx(problem.energy(x), rel=1e-7)
    answer = Relax().sample_problem(problem, seed=0)
    assert problem.feasible(answer.samples).all()
    assert answer.lower_bound <= answer.energy
    assert bool(answer.info["convexified"]) == (kind == "no_diagonal")

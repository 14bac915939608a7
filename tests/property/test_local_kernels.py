"""Every kernel keeps its fields and counts right, and no form of a problem changes the walk."""

import numpy as np
import pytest
from scipy import sparse

from solvers import Dense, LowRank, QuadraticProblem, Sparse
from solvers.sampler import random_states
from solvers.search.kernels.common import GUMBELS, random_states_for
from solvers.search.kernels.factor import lowrank_flip_metropolis, lowrank_swap_metropolis
from solvers.search.kernels.flip import flip_descent, flip_metropolis
from solvers.search.kernels.layout import Layout
from solvers.search.kernels.swap import arranged, swap_descent, swap_heat_bath, swap_metropolis
from solvers.search.kernels.tabu import flip_tabu, swap_tabu
from solvers.search.timed import descend

TEMPERATURES = [5.0, 2.0, 0.5, 0.1, 0.0]


def run_flip_descent(layout, field, x, random, best, tally):
    flip_descent(layout.matrix, field, layout.half, x, 1000)


def run_flip_metropolis(layout, field, x, random, best, tally):
    temperatures = np.array(TEMPERATURES, layout.dtype)
    flip_metropolis(layout.matrix, field, layout.half, x, temperatures, random, best, tally)


def run_flip_tabu(layout, field, x, random, best, tally):
    until, scores = np.zeros(x.size, np.int32), np.empty(x.size, layout.dtype)
    flip_tabu(
        layout.matrix, field, layout.half, x, until, 3, 4, 200, -np.inf, random, best, tally, scores
    )


def run_swap_descent(layout, field, x, random, best, tally):
    scores = np.empty(x.size, layout.dtype)
    swap_descent(
        layout.matrix, field, layout.half, x, layout.starts, random, GUMBELS, scores, 10**6,
        np.zeros(3, np.int64),
    )  # fmt: skip


def run_swap_metropolis(layout, field, x, random, best, tally):
    temperatures = np.array(TEMPERATURES, layout.dtype)
    swap_metropolis(
        layout.matrix, field, layout.half, x, layout.starts, temperatures, random, best, tally
    )


def run_swap_heat_bath(layout, field, x, random, best, tally):
    temperatures = np.array(TEMPERATURES, layout.dtype)
    scores = np.empty(x.size, layout.dtype)
    swap_heat_bath(
        layout.matrix, field, layout.half, x, layout.starts, arranged(x, layout.starts),
        temperatures, random, GUMBELS, best, tally, scores,
    )  # fmt: skip


def run_swap_tabu(layout, field, x, random, best, tally):
    until, scores = np.zeros(x.size, np.int32), np.empty(x.size, layout.dtype)
    swap_tabu(
        layout.matrix, field, layout.half, x, layout.starts, until, 2, 4, 4, 200, -np.inf, random,
        best, tally, scores,
    )  # fmt: skip


FLIPS = [run_flip_descent, run_flip_metropolis, run_flip_tabu]
SWAPS = [run_swap_descent, run_swap_metropolis, run_swap_heat_bath, run_swap_tabu]


def factor_problem(form, rng, n, groups=None, counts=None, rank=5):
    """A problem with small whole coefficients, so that every form computes exactly the same."""
    factor = rng.integers(-2, 3, (rank, n)).astype(float) * (rng.random((rank, n)) < 0.5)
    matrix = factor.T @ factor
    quadratic = {
        "dense": lambda: Dense(matrix),
        "sparse": lambda: Sparse(sparse.csr_array(matrix)),
        "lowrank": lambda: LowRank(factor),
    }[form]()
    linear = rng.integers(-9, 3, n).astype(float)
    return QuadraticProblem(linear, quadratic, groups=groups, counts=counts)


def grouped(form, seed, n=40):
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(0, 6, n))
    sizes = np.bincount(groups, minlength=6)
    counts = rng.integers(0, sizes + 1)
    return factor_problem(form, rng, n, groups, counts)


def run(kernel, problem, dtype, seed):
    layout = Layout.of(problem, dtype)
    x = layout.sorted(random_states(problem, 1, np.random.default_rng(seed)))[0]
    start, field = x.copy(), layout.fields(x[None])[0]
    best, tally = x.copy(), np.zeros(3)
    random = random_states_for(np.random.SeedSequence(seed), 1)[0]
    kernel(layout, field, x, random, best, tally)
    return layout, start, x, field, best, tally


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("kernel", [*FLIPS, *SWAPS])
def test_fields_tally_and_counts_stay_right(kernel, form, dtype, seed):
    problem = grouped(form, seed)
    if kernel in FLIPS:
        problem = problem.without_counts()
    layout, start, x, field, best, tally = run(kernel, problem, dtype, seed)
    assert np.array_equal(field, layout.fields(x[None])[0])
    states = layout.unsorted(np.array([start, x, best]))
    assert problem.feasible(states).all()
    at_start, now, lowest = problem.energies(states)
    assert lowest <= at_start
    if tally[2]:
        assert now - at_start == tally[0]
        assert lowest - at_start == tally[1]
        assert lowest <= now
    else:
        assert now <= at_start


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", [run_flip_metropolis, run_flip_tabu, run_swap_metropolis])
def test_sparse_and_dense_walk_alike(kernel, dtype):
    walks = []
    for form in ("dense", "sparse"):
        problem = grouped(form, 11)
        if kernel in FLIPS:
            problem = problem.without_counts()
        walks.append(run(kernel, problem, dtype, 5))
    assert walks[0][-1][2] > 0
    assert np.array_equal(walks[0][2], walks[1][2])
    assert np.array_equal(walks[0][4], walks[1][4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("counted", [True, False])
def test_factor_and_fields_walk_alike(counted, dtype):
    problem = grouped("lowrank", 4)
    if not counted:
        problem = problem.without_counts()
    kernel = run_swap_metropolis if counted else run_flip_metropolis
    layout, start, x, _, best, tally = run(kernel, problem, dtype, 8)
    again, kept, same = start.copy(), layout.projection(start), start.copy()
    counted_tally, random = np.zeros(3), random_states_for(np.random.SeedSequence(8), 1)[0]
    temperatures = np.array(TEMPERATURES, dtype)
    if counted:
        lowrank_swap_metropolis(
            layout.factor, layout.linear, kept, again, layout.starts, temperatures, random, same,
            counted_tally,
        )  # fmt: skip
    else:
        lowrank_flip_metropolis(
            layout.factor, layout.linear, layout.half, kept, again, temperatures, random, same,
            counted_tally,
        )  # fmt: skip
    assert counted_tally[2] > 0
    assert np.array_equal(kept, layout.projection(again))
    # Flips draw no random number where none could accept, so only the energies may be compared.
    if counted:
        assert np.array_equal(again, x)
        assert np.array_equal(same, best)
        assert np.array_equal(tally, counted_tally)


@pytest.mark.parametrize("form", ["dense", "sparse", "lowrank"])
@pytest.mark.parametrize("seed", range(4))
def test_descent_ends_where_no_move_improves(form, seed):
    problem = grouped(form, seed, n=24)
    for case in (problem, problem.without_counts()):
        start = random_states(case, 3, np.random.default_rng(seed))
        end = descend(case, start)
        assert case.feasible(end).all()
        assert (case.energies(end) <= case.energies(start)).all()
        for state, energy in zip(end, case.energies(end), strict=True):
            assert (case.energies(neighbours(case, state)) >= energy - 1e-9).all()


def neighbours(problem, state):
    """Every state one flip, or with counts one swap, away; and the state itself."""
    moves = [state]
    for i in range(state.size):
        if problem.groups is None:
            moves.append(flipped(state, [i]))
            continue
        for j in range(i):
            if problem.groups[i] == problem.groups[j] and state[i] != state[j]:
                moves.append(flipped(state, [i, j]))
    return np.array(moves)


def flipped(state, indices):
    other = state.copy()
    other[indices] = 1 - other[indices]
    return other


def test_heat_bath_samples_the_boltzmann_distribution():
    rng = np.random.default_rng(0)
    problem = QuadraticProblem(rng.normal(size=5), Dense(np.zeros((5, 5))), counts=2)
    layout = Layout.of(problem, np.float64)
    x = np.array([1, 1, 0, 0, 0], dtype=np.int8)
    field, best, tally, scores = layout.fields(x[None])[0], x.copy(), np.zeros(3), np.empty(5)
    random = random_states_for(np.random.SeedSequence(1), 1)[0]
    seen = np.zeros(5)
    sweeps = np.full(20, 0.7)
    for _ in range(10_000):
        swap_heat_bath(
            layout.matrix, field, layout.half, x, layout.starts, arranged(x, layout.starts),
            sweeps, random, GUMBELS, best, tally, scores,
        )  # fmt: skip
        seen += x
    states = np.array([s for s in np.ndindex(*(2,) * 5) if sum(s) == 2])
    weights = np.exp(-problem.energies(states) / 0.7)
    assert np.allclose(seen / 10_000, weights @ states / weights.sum(), atol=0.02)

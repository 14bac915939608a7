"""Elimination keeps the optimum, and every state of the smaller problem keeps its energy."""

import numpy as np
import pytest
from scipy import sparse

from solvers import Dense, QuadraticProblem, Sparse
from solvers.problem.parts import reduced
from solvers.search.annealing import SwapAnnealing
from solvers.search.tabu import SwapTabu


def random_sparse(seed, n, share, whole=True):
    rng = np.random.default_rng(seed)
    draw = (
        (lambda size: rng.integers(-3, 4, size)) if whole else (lambda size: rng.normal(size=size))
    )
    upper = np.triu(draw((n, n)) * (rng.random((n, n)) < share))
    matrix = sparse.csr_array((upper + upper.T).astype(float))
    return QuadraticProblem(draw(n), Sparse(matrix), offset=1.5)


def all_states(n):
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.15, 0.3, 0.6])
def test_the_optimum_stays(share, whole):
    for seed in range(8):
        problem = random_sparse(seed, 10, share, whole)
        reduction = reduced(problem)
        smaller = reduction.problem
        states = all_states(smaller.num_variables).astype(np.int8)
        energies = smaller.energies(states)
        lifted = reduction.lift(states)
        assert np.allclose(problem.energies(lifted), energies, atol=1e-9)
        assert np.array_equal(lifted[:, reduction.kept], states)
        assert energies.min() == pytest.approx(problem.energies(all_states(10)).min(), abs=1e-9)


def test_trees_and_rings_vanish():
    n = 200
    ring = sparse.coo_array((np.ones(n), (np.arange(n), (np.arange(n) + 1) % n)), shape=(n, n))
    problem = QuadraticProblem(np.linspace(-1, 1, n), Sparse(sparse.csr_array(ring + ring.T)))
    assert reduced(problem).problem.num_variables == 0
    best = SwapTabu().sample_problem(problem, seed=0)
    annealed = SwapAnnealing().sample_problem(problem.without_counts(), seed=1, num_reads=3)
    assert best.energy == annealed.energies[-1]
    assert best.info["variables_eliminated"] == n


def test_others_are_left_alone():
    counted = QuadraticProblem(np.zeros(4), Sparse(sparse.csr_array((4, 4))), counts=2)
    dense = QuadraticProblem(np.zeros(4), Dense(np.zeros((4, 4))))
    for problem in (counted, dense):
        assert reduced(problem).problem is problem


def test_initial_states_are_kept_through_the_reduction():
    problem = random_sparse(3, 60, 0.04)
    best = SwapTabu().sample_problem(problem, num_reads=5, seed=0)
    again = SwapAnnealing().sample_problem(
        problem, initial_states=best.samples, num_reads=5, num_sweeps=1, seed=1
    )
    assert (np.sort(again.energies) <= best.energies).all()

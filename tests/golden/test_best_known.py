"""Best-known values of published QUBO problems, each reached within a second or so."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from solvers import QuadraticProblem, Sparse
from solvers.annealing import SwapAnnealing
from solvers.tabu import SwapTabu

SHARED = Path(__file__).parents[3] / "shared" / "data" / "qubo"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}"),
]


def numbers(path):
    with gzip.open(path, "rt") as text:
        return np.array(text.read().split(), dtype=np.float64)


def symmetric(n, i, j, weight):
    return sparse.coo_array((np.r_[weight, weight], (np.r_[i, j], np.r_[j, i])), shape=(n, n))


def or_library(name, sign):
    n, _, *_ = values = numbers(SHARED / "orlib" / f"{name}.txt.gz")
    i, j, q = values[2:].reshape(-1, 3).T
    i, j, n = i.astype(int) - 1, j.astype(int) - 1, int(n)
    linear = np.zeros(n)
    linear[i[i == j]] = sign * q[i == j]
    off = i != j
    return QuadraticProblem(linear, Sparse(symmetric(n, i[off], j[off], 2 * sign * q[off])))


def max_cut(name):
    n, _, *_ = values = numbers(SHARED / "gset" / f"{name}.txt.gz")
    i, j, w = values[2:].reshape(-1, 3).T
    i, j, n = i.astype(int) - 1, j.astype(int) - 1, int(n)
    degrees = np.bincount(i, w, n) + np.bincount(j, w, n)
    return QuadraticProblem(-degrees, Sparse(symmetric(n, i, j, 2 * w)))


@pytest.mark.parametrize(
    ("name", "sign", "best"),
    [
        ("bqp50.1", -1, -2098),
        ("bqp50.9", -1, -3780),
        ("bqp250.8", -1, -35726),
        ("bqp500.6", -1, -121772),
        ("gka8b", 1, -145),
        ("gka10b", 1, -154),
        ("gka10d", 1, -19102),
        ("gka1f", 1, -61194),
        ("gka5f", 1, -190507),
    ],
)
def test_tabu_reaches_the_best_known(name, sign, best):
    problem = or_library(name, sign)
    solution = SwapTabu().sample_problem(
        problem, num_restarts=500, target_energy=best, time_limit=20, seed=0
    )
    assert solution.energy == best


@pytest.mark.parametrize(("name", "cut"), [("G1", 11624), ("G6", 2178)])
def test_annealing_reaches_the_best_known_cut(name, cut):
    solution = SwapAnnealing().sample_problem(
        max_cut(name), num_restarts=200, target_energy=-cut, time_limit=30, seed=0
    )
    assert solution.energy == -cut

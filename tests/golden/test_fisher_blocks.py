"""Real pruning blocks with their proven optima."""

import json
from pathlib import Path

import numpy as np
import pytest

from solvers.convex.exact import Exact
from solvers.convex.relax import Relax
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import LowRank

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "qubo" / "fisher"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no shared Fisher blocks in {FOLDER}"),
]

PROVED = [
    ("digits-n64-N32-c0", 32, 0.492600),
    ("digits-n64-N32-c0", 6, 0.006188),
    ("digits-n64-N32-c0", 58, 8.612907),
    ("digits-n64-N256-c1", 32, -184.725688),
    ("digits-n64-N256-c1", 6, -118.372715),
    ("digits-n64-N256-c1", 58, 125.889857),
    ("syn-n64-N32", 32, -0.012875),
    ("syn-n64-N32", 6, -0.288036),
    ("syn-n64-N32", 58, 5.727963),
    ("digits-n256-N128-c0", 25, 0.024356),
    ("digits-n256-N128-c0", 231, 77.600482),
    ("digits-n256-N1024-c1", 128, -505.896152),
    ("digits-n256-N1024-c1", 25, -474.056207),
    ("digits-n256-N1024-c1", 231, 438.260271),
]


def load(name: str, count: int) -> QuadraticProblem:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        assert json.loads(str(arrays["meta"]))
        return QuadraticProblem(
            arrays["d"].astype(np.float64),
            LowRank(arrays["U"].astype(np.float64)),
            counts=count,
        )


@pytest.mark.parametrize(("name", "count", "optimum"), PROVED)
def test_branch_and_bound_proves_the_known_optimum(name, count, optimum):
    solution = Exact().sample_problem(load(name, count), seed=0)
    assert solution.info["proved"]
    # The table has six decimals.
    assert solution.energy == pytest.approx(optimum, abs=6e-7)
    assert solution.lower_bound <= solution.energy


@pytest.mark.parametrize(
    ("name", "count", "best"),
    [
        ("digits-n1024-N1024-c0", 512, 12.731190),
        ("digits-n1024-N256-c0", 922, 230.321705),
        ("digits-n1024-N1024-c1", 512, -1548.868431),
    ],
)
def test_relax_is_within_a_percent_of_the_best_known(name, count, best):
    problem = load(name, count)
    solution = Relax().sample_problem(problem, num_reads=4, seed=0)
    assert problem.feasible(solution.samples).all()
    assert solution.energy <= best + 0.01 * abs(best)
    assert solution.lower_bound <= best + 1e-6 * abs(best)

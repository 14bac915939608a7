"""Best-known values of published QUBO problems, each reached within a second or so."""

from pathlib import Path

import pytest

from solvers.formats.files import read_problem
from solvers.search.annealing import SwapAnnealing
from solvers.search.tabu import SwapTabu

SHARED = Path(__file__).parents[3] / "shared" / "data" / "qubo"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}"),
]


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("bqp50.1", -2098),
        ("bqp50.9", -3780),
        ("bqp250.8", -35726),
        ("bqp500.6", -121772),
        ("gka8b", -145),
        ("gka10b", -154),
        ("gka10d", -19102),
        ("gka1f", -61194),
        ("gka5f", -190507),
    ],
)
def test_tabu_reaches_the_best_known(name, best):
    problem = read_problem(SHARED / "orlib" / f"{name}.txt.gz", maximize=name.startswith("bqp"))
    solution = SwapTabu().sample_problem(
        problem, num_restarts=500, target_energy=best, time_limit=20, seed=0
    )
    assert solution.energy == best


@pytest.mark.parametrize(("name", "cut"), [("G1", 11624), ("G6", 2178)])
def test_annealing_reaches_the_best_known_cut(name, cut):
    solution = SwapAnnealing().sample_problem(
        read_problem(SHARED / "gset" / f"{name}.txt.gz"),
        num_restarts=200,
        target_energy=-cut,
        time_limit=30,
        seed=0,
    )
    assert solution.energy == -cut

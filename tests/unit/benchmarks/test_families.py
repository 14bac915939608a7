"""Families of problems: their optima, by enumeration; and samplers that reach them by sweeps."""

import time
from itertools import pairwise

import numpy as np
import pytest
import synthetic_study as synthetic

from benchmarks.defaults import CHOOSE, CHOOSE_FILES, REPORT, REPORT_FILES, AsUsersCall, Tables
from benchmarks.families import FAMILIES, make
from solvers.registry import get_sampler
from solvers.study.compare import Study
from solvers.study.instances import fingerprint

SMALLEST = {
    "tour": {"cities": 4},
    "coloring": {"nodes": 5, "colors": 3, "edges": 7},
    "knapsack": {"items": 6},
    "assignment": {"size": 4},
    "partition": {"numbers": 12, "digits": 3},
    "independent-set": {"nodes": 12, "percent": 30},
    "cover": {"nodes": 12, "percent": 30},
    "cut": {"nodes": 8, "density": 50, "low": -3, "high": 3},
    "torus": {"shape": (3, 4), "gaussian": False},
    "glass": {"shape": (3, 4), "gaussian": True},
    "loops": {"shape": (3, 2, 2), "percent": 60},
    "processor": {"topology": "chimera", "size": 1, "r": 3},
    "mean-field": {"spins": 8},
    "chains": {"logical": 5, "length": 3},
    "max-2sat": {"variables": 10, "clauses": 30},
    "nae-3sat": {"variables": 12, "clauses": 24},
    "sparse": {"variables": 12, "couplings": 30},
    "features": {"total": 12, "count": 4},
    "portfolio": {"assets": 12, "count": 4},
}
#: Their optimum is best seen, or known for larger ones only.
WITHOUT_OPTIMUM = {"cut", "mean-field", "max-2sat", "sparse", "features", "portfolio"}


def every_energy(problem):
    """Of all feasible states, shape (k,); the states, shape (k, n)."""
    n = problem.num_variables
    states = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1
    states = states[problem.feasible(states)]
    return problem.energies(states), states


def test_every_family_is_tried():
    assert set(SMALLEST) == set(FAMILIES)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITHOUT_OPTIMUM))
def test_the_known_optimum_is_the_lowest_of_all_energies(family, seed):
    instance = make(family, **SMALLEST[family], seed=seed)
    assert instance.proved
    assert instance.known == pytest.approx(every_energy(instance.problem)[0].min(), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_makes_one_problem(family):
    first, again, other = (make(family, **SMALLEST[family], seed=seed) for seed in (3, 3, 4))
    assert fingerprint(first.problem) == fingerprint(again.problem)
    assert fingerprint(first.problem) != fingerprint(other.problem)


def test_the_tour_is_as_long_as_it_says():
    problem = make("tour", cities=5, seed=0).problem
    points = np.random.default_rng(0).uniform(0, 100, (5, 2))
    order = [3, 0, 4, 1, 2]
    lengths = [np.round(np.linalg.norm(points[i] - points[j])) for i, j in pairwise([*order, 3])]
    table = np.zeros((5, 5))
    table[order, range(5)] = 1
    assert problem.energy(table.ravel()) == pytest.approx(sum(lengths))


def test_cuts_count_edges_and_know_no_sides():
    energies, states = every_energy(make("cut", **SMALLEST["cut"], seed=0).problem)
    assert energies[0] == 0
    assert np.array_equal(energies, energies[::-1])
    full = make("cut", nodes=6, density=100, low=1, high=1, seed=0).problem
    assert full.energy([1, 1, 0, 0, 0, 0]) == -8
    assert states.shape == (256, 8)


def test_clauses_are_broken_one_time_in_four():
    energies, _ = every_energy(make("max-2sat", **SMALLEST["max-2sat"], seed=0).problem)
    assert energies.mean() == pytest.approx(30 / 4)
    assert np.allclose(energies, energies.round())
    assert energies.min() >= 0


def test_portfolios_are_convex_and_features_are_not():
    risk = make("portfolio", **SMALLEST["portfolio"], seed=0).problem
    redundancy = make("features", **SMALLEST["features"], seed=0).problem
    assert np.linalg.eigvalsh(risk.quadratic.dense()).min() > 0
    assert np.linalg.eigvalsh(redundancy.quadratic.dense()).min() < 0


# -- known optima by sweeps ---------------------------------------------------------------

TABU = ("swap-tabu", {"num_restarts": 1000})
ANNEAL = ("swap-anneal", {"num_reads": 20, "num_sweeps": 1000})
#: A sampler that the study found good, on problems of the size that people try first.
BY_SWEEPS = [
    (TABU, "tour", {"cities": 6}),
    (TABU, "tour", {"cities": 8}),
    (TABU, "coloring", {"nodes": 12, "colors": 3, "edges": 24}),
    (TABU, "knapsack", {"items": 10}),
    (TABU, "assignment", {"size": 5}),
    (TABU, "partition", {"numbers": 16, "digits": 4}),
    (TABU, "independent-set", {"nodes": 40, "percent": 15}),
    (TABU, "cover", {"nodes": 40, "percent": 15}),
    (TABU, "torus", {"shape": (6, 6), "gaussian": True}),
    (TABU, "chains", {"logical": 8, "length": 4}),
    (ANNEAL, "glass", {"shape": (8, 8), "gaussian": False}),
    (ANNEAL, "loops", {"shape": (4, 4, 4), "percent": 70}),
    (ANNEAL, "nae-3sat", {"variables": 40, "clauses": 84}),
]


#: Past the sizes that a proof takes care of.
BY_DEFAULT = [
    *((family, parameters) for _, family, parameters in BY_SWEEPS),
    ("tour", {"cities": 10}),
    ("coloring", {"nodes": 30, "colors": 3, "edges": 60}),
    ("assignment", {"size": 8}),
    ("partition", {"numbers": 30, "digits": 6}),
    ("independent-set", {"nodes": 75, "percent": 10}),
    ("cover", {"nodes": 75, "percent": 10}),
    ("glass", {"shape": (12, 12), "gaussian": False}),
    ("loops", {"shape": (6, 6, 6), "percent": 70}),
    ("processor", {"topology": "chimera", "size": 4, "r": 1}),
    ("chains", {"logical": 12, "length": 6}),
    ("nae-3sat", {"variables": 90, "clauses": 180}),
]


def reaches(instance, sampler, options):
    """Whether it finds the known optimum with seed 0 and no clock."""
    found = get_sampler(sampler).sample_problem(instance.problem, seed=0, **options)
    return found.energy == pytest.approx(instance.known, abs=1e-6)


@pytest.mark.parametrize(("asked", "family", "parameters"), BY_SWEEPS)
def test_known_optima_by_sweeps(asked, family, parameters):
    assert reaches(make(family, **parameters, seed=0), *asked)


@pytest.mark.parametrize(("family", "parameters"), BY_DEFAULT)
def test_known_optima_by_sweeps_of_the_default(family, parameters):
    assert reaches(make(family, **parameters, seed=0), "auto", {})


# -- the benchmark ------------------------------------------------------------------------


def test_no_reported_problem_was_chosen_on():
    chosen = [(family, tuple(sorted(given.items()))) for family, given in CHOOSE]
    reported = [(family, tuple(sorted(given.items()))) for family, given in REPORT]
    assert not set(chosen) & set(reported)
    assert not set(CHOOSE_FILES) & set(REPORT_FILES)
    assert {family for family, _ in chosen} == {family for family, _ in reported} == set(FAMILIES)


def test_the_table_counts_what_was_reached():
    energies = {
        "block-64": {"auto": -10.0, "relax": -9.0},
        "block-256": {"auto": -39.0, "relax": -40.0},
        "block-1024": {"auto": 12.5 + 1e-7, "relax": 12.5},
    }
    rows = [
        synthetic.row(problem=problem, sampler=sampler, energy=energy)
        for problem, found in energies.items()
        for sampler, energy in found.items()
    ]
    rows.append(synthetic.failed("crashed", "died", problem="gka-a", sampler="auto"))
    rows.append(synthetic.row(problem="gka-a", sampler="relax", energy=-1500.0))
    problems = synthetic.problems().to_dict("records")
    samplers = [{"label": "auto"}, {"label": "relax"}]
    tables = Tables(Study({"problems": problems, "samplers": samplers}, rows))
    assert tables.families(1.0).splitlines()[2:] == [
        "| fisher | 3 | 2 (0.0083) | 2 (0.033) |",
        "| gka | 1 | 0 (inf) | 0 (0.5) |",
        "| all | 4 | **2** | **2** |",
    ]
    assert tables.worse(1.0).splitlines()[2:] == [
        "| block-256 | 2.50% | relax | 0.00% |",
        "| gka-a | inf% | relax | 50.00% |",
    ]


class Watching:
    """Notes the clock and the options of its call."""

    def sample_problem(self, problem, **options):
        self.seen = (time.perf_counter, options)


def test_limits_are_cpu_seconds_and_the_clock_is_put_back():
    wall, watching = time.perf_counter, Watching()
    asked = AsUsersCall("relax")
    vars(asked)["_sampler"] = watching
    asked.sample_problem(make("partition", numbers=8, digits=2, seed=0).problem, time_limit=0.5)
    assert watching.seen == (time.process_time, {"time_limit": 0.5, "seed": 0})
    assert time.perf_counter is wall

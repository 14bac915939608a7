"""Annealing, tabu search and descent as samplers: options, limits, edges, determinism."""

import time

import numpy as np
import pytest
from interrupting import interrupt_after
from scipy import sparse

from solvers import Dense, LowRank, QuadraticProblem, Sparse
from solvers.errors import InvalidOptionError
from solvers.sampler import random_states
from solvers.search.annealing import SwapAnnealing
from solvers.search.descent import Greedy
from solvers.search.forms import FactorFlips, FactorSwaps, SwapFields, SwapRows, cheapest, forms_for
from solvers.search.kernels.layout import Layout
from solvers.search.runs import Pool
from solvers.search.tabu import SwapTabu
from solvers.search.timed import descend

SAMPLERS = [
    (SwapAnnealing(), {"num_sweeps": 60}),
    (SwapTabu(), {"num_restarts": 1}),
    (Greedy(), {}),
]
WALKERS = SAMPLERS[:2]


def random_problem(form, seed, n=10, **counts):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(4, n))
    forms = {
        "dense": lambda: Dense(factor.T @ factor),
        "lowrank": lambda: LowRank(factor),
    }
    if form == "sparse":
        mask = rng.random((n, n)) < 0.4
        matrix = (factor.T @ factor) * (mask | mask.T)
        return QuadraticProblem(rng.normal(size=n), Sparse(sparse.csr_array(matrix)), **counts)
    return QuadraticProblem(rng.normal(size=n), forms[form](), **counts)


def optimum(problem):
    n = problem.num_variables
    states = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return problem.energies(states[problem.feasible(states)]).min()


@pytest.mark.parametrize("form", ["dense", "sparse", "lowrank"])
@pytest.mark.parametrize("counts", [{}, {"counts": 4}, {"counts": [2, 3], "groups": [0, 1] * 5}])
@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_small_problems_are_solved_for_any_number_of_threads(sampler, options, counts, form):
    for seed in range(3):
        problem = random_problem(form, seed, **counts)
        reads = {"num_reads": 30, "seed": 7, **options}
        solution = sampler.sample_problem(problem, **reads)
        assert problem.feasible(solution.samples).all()
        assert solution.energy == pytest.approx(optimum(problem), abs=1e-9)
        if "num_threads" in sampler.options:
            threaded = sampler.sample_problem(problem, num_threads=3, **reads)
            assert np.array_equal(solution.samples, threaded.samples)


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
@pytest.mark.parametrize("counts", [None, 0, "all"])
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_edges(sampler, options, n, counts):
    counts = n if counts == "all" else counts
    for scale in (0.0, 1.0, 1e200):
        rng = np.random.default_rng(n)
        matrix = rng.normal(size=(n, n)) * scale
        problem = QuadraticProblem(rng.normal(size=n) * scale, matrix + matrix.T, counts=counts)
        solution = sampler.sample_problem(problem, num_reads=3, seed=0, **options)
        assert solution.samples.shape == (3, n)
        assert problem.feasible(solution.samples).all()
        assert np.array_equal(solution.energies, problem.energies(solution.samples))


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
@pytest.mark.parametrize("counts", [None, 30])
def test_never_worse_than_the_initial_state(sampler, options, counts):
    problem = random_problem("dense", 5, n=60, counts=counts)
    good = SwapAnnealing().sample_problem(problem, num_reads=4, seed=1)
    answer = sampler.sample_problem(
        problem, initial_states=good.samples, num_reads=4, seed=2, **options
    )
    assert answer.energy <= good.energy + 1e-12
    assert (np.sort(answer.energies) <= good.energies + 1e-12).all()


def test_thousands_of_tiny_groups():
    groups = np.repeat(np.arange(500), 4)
    problem = random_problem("lowrank", 0, n=2000, groups=groups, counts=np.full(500, 2))
    for sampler, options in SAMPLERS:
        solution = sampler.sample_problem(problem, seed=0, **options)
        assert problem.feasible(solution.samples).all()


def test_groups_in_any_order_are_the_same_problem():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, 12)
    counts = np.bincount(groups, minlength=3) // 2
    problem = random_problem("dense", 1, n=12, groups=groups, counts=counts)
    for sampler, options in SAMPLERS:
        solution = sampler.sample_problem(problem, num_reads=20, seed=0, **options)
        assert solution.energy == pytest.approx(optimum(problem), abs=1e-9)


@pytest.mark.parametrize(("sampler", "options"), WALKERS)
@pytest.mark.parametrize("counts", [None, 300])
def test_time_limit_ends_the_search(sampler, options, counts):
    problem = random_problem("dense", 0, n=600, counts=counts)
    sampler.sample_problem(problem, seed=0, **options)
    begun = time.perf_counter()
    solution = sampler.sample_problem(
        problem, num_restarts=10**9, num_reads=50, seed=0, time_limit=0.2
    )
    assert time.perf_counter() - begun < 5
    assert problem.feasible(solution.samples).all()
    assert 1 <= solution.info["reads_begun"] <= 50
    assert sampler.sample_problem(problem, seed=0, time_limit=0).samples.shape == (1, 600)


@pytest.mark.parametrize(("sampler", "options"), WALKERS)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_interrupt_returns_the_best_so_far(sampler, options, num_threads):
    problem = random_problem("dense", 0, n=100, counts=50)
    options = {**options, "num_restarts": 10**9, "seed": 0, "num_threads": num_threads}
    sampler.sample_problem(problem, **options, time_limit=0.01)  # compiles
    with interrupt_after(0.5) as sent:
        solution = sampler.sample_problem(problem, num_reads=4, **options)
        late = time.perf_counter() - sent[0]
    assert late < 1.0
    assert solution.info["interrupted"]
    assert problem.feasible(solution.samples).all()
    assert 0 < len(solution.samples) < 5
    # What half a second finds is at least as good as a few milliseconds' worth.
    short = sampler.sample_problem(problem, **{**options, "num_restarts": 0})
    assert solution.energy <= short.energy


@pytest.mark.parametrize(("sampler", "options"), WALKERS)
def test_a_read_stops_at_its_target(sampler, options):
    problem = random_problem("dense", 0, n=20, counts=10)
    reachable = sampler.sample_problem(problem, num_reads=10, seed=0, **options).energy
    solution = sampler.sample_problem(
        problem, seed=0, num_restarts=10**9, target_energy=reachable, time_limit=60
    )
    assert solution.energy <= reachable + 1e-9


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (SwapAnnealing(), {"num_reads": 0}, "num_reads"),
        (SwapAnnealing(), {"num_sweeps": 0}, "num_sweeps"),
        (SwapAnnealing(), {"num_restarts": -1}, "num_restarts"),
        (SwapAnnealing(), {"num_threads": 0}, "num_threads"),
        (SwapAnnealing(), {"beta_range": (1.0,)}, "beta_range"),
        (SwapAnnealing(), {"beta_range": (0.0, 1.0)}, "beta_range"),
        (SwapAnnealing(), {"beta_range": "hot"}, "beta_range"),
        (SwapAnnealing(), {"schedule": "cubic"}, "geometric, linear"),
        (SwapAnnealing(), {"time_limit": -1}, "time_limit"),
        (SwapAnnealing(), {"target_energy": float("nan")}, "target_energy"),
        (SwapAnnealing(), {"initial_states": np.ones((1, 10))}, "counts"),
        (SwapTabu(), {"tenure": -1}, "tenure"),
        (SwapTabu(), {"tenure": 10}, "tenure"),
        (SwapTabu(), {"num_iterations": 0}, "num_iterations"),
        (Greedy(), {"num_reads": 1.5}, "num_reads"),
    ],
)
def test_bad_options_are_refused(sampler, options, message):
    with pytest.raises(InvalidOptionError, match=message):
        sampler.sample_problem(random_problem("dense", 0, counts=4), **options)


def test_the_form_follows_cost():
    rng = np.random.default_rng(0)
    wide = Layout.of(
        QuadraticProblem(np.zeros(4096), LowRank(rng.normal(size=(8, 4096))), counts=2048),
        np.float32,
    )
    forms = forms_for(wide)
    assert isinstance(cheapest(forms, 0.9), FactorSwaps)
    assert isinstance(cheapest(forms, 1e-5), SwapRows)
    square = Layout.of(random_problem("dense", 0, n=512, counts=256), np.float32)
    assert isinstance(cheapest(forms_for(square), 0.9), SwapFields)


def test_pool_knows_mirror_images_and_keeps_counts():
    cut = QuadraticProblem([-1.0, -2.0, -1.0], [[0, 2, 0], [2, 0, 2], [0, 2, 0]])
    pool = Pool(Layout.of(cut), 2, np.random.default_rng(0))
    pool.add(np.array([0, 1, 0], np.int8), -2.0)
    pool.add(np.array([1, 0, 1], np.int8), -2.0)
    assert len(pool.states) == 1

    grouped = random_problem("dense", 0, n=12, groups=[0, 1] * 6, counts=[2, 3])
    pool = Pool(Layout.of(grouped), 3, np.random.default_rng(0))
    for _ in range(20):
        start = pool.next_start()
        state = pool.layout.unsorted(start)
        assert grouped.feasible(state).all()
        pool.add(start, grouped.energy(state))
    assert len(pool.states) == 3


@pytest.mark.parametrize("counts", [None, 4])
def test_a_factor_too_wide_for_a_matrix_is_walked_alone(monkeypatch, counts):
    monkeypatch.setattr("solvers.search.kernels.layout._MOST_BYTES", 0)
    problem = random_problem("lowrank", 2, counts=counts)
    forms = forms_for(Layout.of(problem, np.float32))
    assert [isinstance(form, FactorFlips) for form in forms] == [True]
    solution = SwapAnnealing().sample_problem(problem, num_reads=20, num_sweeps=100, seed=0)
    assert problem.feasible(solution.samples).all()
    assert solution.energy == pytest.approx(optimum(problem), abs=1e-6)


def test_a_descent_in_pieces_ends_where_one_in_whole_does(monkeypatch):
    problem = random_problem("dense", 3, n=60, groups=[0, 1, 2] * 20, counts=[7, 10, 0])
    states = random_states(problem, 5, np.random.default_rng(0))
    whole = descend(problem, states)
    monkeypatch.setattr("solvers.search.timed._READS_PER_LOOK", 300)
    assert np.array_equal(descend(problem, states), whole)
    assert (problem.energies(whole) < problem.energies(states)).all()

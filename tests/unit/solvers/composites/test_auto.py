"""The default sampler: which rule a problem gets, time used, proofs, one answer for a seed."""

import dimod
import numpy as np
import pytest
from scipy import sparse

from solvers import LowRank, QuadraticProblem, Solution, Sparse, solve
from solvers.composites.auto import RULES, Auto, _both
from solvers.errors import InvalidProblemError
from solvers.formats.files import write_problem


def dense(n, counts=None, seed=0):
    matrix = np.random.default_rng(seed).normal(size=(n, n))
    return QuadraticProblem(np.zeros(n), matrix + matrix.T, counts=counts)


def ring(n):
    i = np.arange(n)
    matrix = sparse.coo_array((np.ones(n), (i, (i + 1) % n)), shape=(n, n))
    return QuadraticProblem(np.full(n, -1.0), Sparse(sparse.csr_array(matrix + matrix.T)))


def thinned(n, share):
    rng = np.random.default_rng(1)
    matrix = np.triu(rng.normal(size=(n, n)) * (rng.random((n, n)) < share), 1)
    return QuadraticProblem(np.zeros(n), matrix + matrix.T)


@pytest.mark.parametrize(
    ("problem", "rule", "samplers"),
    [
        (dense(10), "at most 16 variables", ["Enumeration"]),
        (dense(10, 3), "at most 16 variables", ["Enumeration"]),
        (dense(30, 10), "exact counts, at most 100 variables", None),
        (QuadraticProblem(np.zeros(200), LowRank(np.eye(3, 200)), counts=9), "exact counts", None),
        (dense(40), "at most 64 variables", ["SwapTabu", "Exact"]),
        (ring(300), "at most 24 neighbours each", ["SwapAnnealing"]),
        (thinned(200, 0.1), "at most 24 neighbours each", ["SwapAnnealing"]),
        (thinned(200, 0.15), "more neighbours", ["SwapTabu"]),
        (dense(100), "more neighbours", ["SwapTabu"]),
        (QuadraticProblem([], np.zeros((0, 0))), "at most 16 variables", ["Enumeration"]),
    ],
)
def test_each_shape_has_its_rule(problem, rule, samplers):
    solution = Auto().sample_problem(problem, seed=0, num_reads=1)
    assert solution.info["auto"]["rule"] == rule
    assert samplers is None or solution.info["auto"]["samplers"] == samplers
    assert problem.feasible(solution.samples).all()


def test_the_last_rule_takes_everything_and_each_says_what_set_it():
    assert RULES[-1].fits(None)
    assert all(rule.study and rule.when for rule in RULES)
    assert len({rule.when for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("problem", [dense(40), dense(120), ring(200), dense(60, 20)])
def test_without_a_limit_a_seed_gives_one_answer(problem):
    one, again = (solve(problem, seed=5) for _ in range(2))
    assert np.array_equal(one.samples, again.samples)
    assert one.lower_bound == again.lower_bound


def test_time_that_is_given_is_used_unless_the_optimum_is_proved():
    hard = solve(dense(120), time_limit=1.0, seed=0)
    assert hard.timing["sampling_ns"] > 0.8e9
    easy = solve(dense(12), time_limit=60.0, seed=0)
    assert easy.proved
    assert easy.timing["sampling_ns"] < 30e9


def test_the_second_sampler_is_heard_where_the_first_has_a_hundred_answers():
    problem = dense(40)
    first = Solution.of(problem, np.zeros((100, 40), np.int8), lower_bound=-1e9)
    best = solve(problem, "swap-tabu", seed=0)
    both = _both(problem, first, best)
    assert both.energy == best.energy < first.energy
    assert len(both.samples) == 100


def test_a_good_start_is_not_lost():
    problem = dense(90, seed=3)
    best = solve(problem, "swap-tabu", num_reads=20, seed=1)
    assert solve(problem, initial_states=best.sample, num_reads=1).energy <= best.energy


def test_everything_that_is_a_problem_can_be_asked(tmp_path):
    problem = QuadraticProblem([1.0, -1.0, 0.5], [[0, -3, 0], [-3, 0, 0], [0, 0, 0]])
    write_problem(problem, tmp_path / "p.qubo")
    for form in (problem, problem.to_bqm(), problem.to_bqm().spin, tmp_path / "p.qubo"):
        assert solve(form).energy == pytest.approx(-3.0)
    counted = QuadraticProblem(problem.linear, problem.quadratic, counts=1)
    assert solve(counted.to_cqm()).energy == pytest.approx(-1.0)
    assert solve(problem, dimod.ExactSolver()).energy == pytest.approx(-3.0)
    with pytest.raises(InvalidProblemError, match="a dict is not a problem"):
        solve({})

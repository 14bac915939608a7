"""Parts of problems: restriction, decomposition, roof duality."""

import time

import dimod
import numpy as np
import pytest
from interrupting import interrupt_after

from solvers import LowRank, QuadraticProblem, Solution, Sparse
from solvers.composites import roof
from solvers.composites.decompose import Decompose, decompose
from solvers.composites.roof import RoofDuality, roof_dual
from solvers.errors import InvalidOptionError, InvalidProblemError, ProblemTooLargeError
from solvers.host.clock import Deadline
from solvers.problem.parts import restricted
from solvers.problem.repair import repair
from solvers.testing import all_states, convex_problem, grouped_problem, indefinite_problem


def test_rows_of_every_form_are_rows_of_the_matrix():
    factor = np.random.default_rng(0).normal(size=(3, 5))
    problem = QuadraticProblem(np.zeros(5), LowRank(factor))
    matrix = factor.T @ factor
    sparse_form = QuadraticProblem(np.zeros(5), Sparse(matrix)).quadratic
    for form in (problem.quadratic, sparse_form, QuadraticProblem(np.zeros(5), matrix).quadratic):
        for i in range(5):
            np.testing.assert_allclose(form.row(i), matrix[i])


@pytest.mark.parametrize("problem", [grouped_problem(1), convex_problem(10, 2), *[
    QuadraticProblem(np.arange(6.0), form, 2.0, counts=3)
    for form in (LowRank(np.eye(2, 6)), Sparse(np.diag(np.ones(5), 1) + np.diag(np.ones(5), -1)))
]])  # fmt: skip
def test_a_restricted_problem_has_the_energies_of_the_whole(problem):
    rng = np.random.default_rng(3)
    states = all_states(problem)
    x = states[rng.integers(len(states))]
    free = rng.permutation(problem.num_variables)[:4]
    part = restricted(problem, x, free)
    for inner in all_states(part):
        whole = x.copy()
        whole[free] = inner
        assert problem.feasible(whole).all()
        assert part.energy(inner) == pytest.approx(problem.energy(whole))
    assert any((inner == x[free]).all() for inner in all_states(part))


def test_fixed_variables_may_not_break_a_count():
    problem = QuadraticProblem(np.zeros(4), np.zeros((4, 4)), counts=1)
    with pytest.raises(InvalidProblemError, match="count cannot be -1"):
        restricted(problem, np.array([1, 1, 0, 0]), np.array([2, 3]))


# -- decomposition --------------------------------------------------------------------------


def test_a_large_problem_on_a_sampler_that_enumerates_small_ones():
    problem = convex_problem(60, 4, counts=25)
    start = np.zeros((1, 60), dtype=np.int8)
    start[0, :25] = 1
    sampler = decompose(dimod.ExactSolver(), size=6)
    solution = sampler.sample_problem(problem, seed=1, initial_states=start)
    assert problem.feasible(solution.samples).all()
    assert solution.energy < problem.energy(start[0])
    again = sampler.sample_problem(problem, seed=1, initial_states=start)
    assert np.array_equal(solution.samples, again.samples)
    totals = solution.info["decompose"]
    assert totals["blocks"] == 10 * totals["passes"]
    assert totals["improved"] > 0


@pytest.mark.parametrize("problem", [grouped_problem(7), indefinite_problem(12, 8)])
def test_groups_and_plain_problems(problem):
    solution = Decompose("greedy", size=7).sample_problem(problem, seed=2, num_reads=8)
    assert len(solution.samples) == 8
    assert problem.feasible(solution.samples).all()
    assert solution.energy == pytest.approx(problem.energies(all_states(problem)).min())


def test_blocks_hold_ones_and_zeros_and_every_variable_once():
    seen = []

    class Watches:
        parameters = {}  # noqa: RUF012

        def sample_problem(self, problem):
            seen.append((problem.num_variables, problem.counts.tolist()))
            states = np.zeros((1, problem.num_variables), dtype=np.int8)
            states[0, : problem.counts[0]] = 1
            return Solution.of(problem, states)

        def sample(self, bqm):
            raise NotImplementedError

    problem = convex_problem(40, 1, counts=10)
    Decompose(Watches(), size=8).sample_problem(problem, seed=1, max_passes=1)
    # A quarter are ones, so that blocks of 8 have two each.
    assert seen == [(8, [2])] * 5


def test_limits_of_a_decomposition():
    problem = convex_problem(40, 1, counts=10)
    stopped = Decompose("greedy", size=8).sample_problem(problem, time_limit=0.0, seed=1)
    assert "decompose" not in stopped.info  # No sub-block was begun.
    assert problem.feasible(stopped.samples).all()
    for options, message in (({"size": 1}, "at least 2"), ({"size": 0}, "size must be")):
        with pytest.raises(InvalidOptionError, match=message):
            Decompose("greedy", **options)
    with pytest.raises(InvalidOptionError, match="time_limit"):
        Decompose("greedy").sample_problem(problem, time_limit=-1.0)


def test_an_interrupted_decomposition_returns_the_best_so_far():
    problem = convex_problem(200, 1, counts=50)
    start = repair(problem, np.zeros(200))
    sampler = Decompose("greedy", size=20)
    sampler.sample_problem(problem, seed=1)  # compiled
    with interrupt_after(1.0) as sent:
        solution = sampler.sample_problem(problem, seed=1, num_reads=10**7, initial_states=start)
    assert time.perf_counter() - sent[0] < 10
    assert solution.info["interrupted"] is True
    assert problem.feasible(solution.samples).all()
    assert solution.energy < problem.energy(start[0])
    assert solution.info["decompose"]["blocks"] > 10


# -- roof duality ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_roof_dual_is_a_bound_and_its_fixings_are_optimal(seed):
    rng = np.random.default_rng(seed)
    matrix = np.triu(rng.normal(size=(10, 10)) * (rng.random((10, 10)) < 0.3), 1)
    problem = QuadraticProblem(2.0 * rng.normal(size=10), matrix + matrix.T, 0.5)
    states = all_states(problem)
    energies = problem.energies(states)
    dual = roof_dual(problem)
    assert dual.lower_bound <= energies.min()
    optimal = states[energies <= energies.min() + 1e-9]
    assert any(all(x[i] == value for i, value in dual.fixed.items()) for x in optimal)
    counted = QuadraticProblem(problem.linear, problem.quadratic, 0.5, counts=4)
    bound = roof_dual(counted)
    assert bound.fixed == {}
    assert bound.lower_bound <= counted.energies(all_states(counted)).min()
    assert bound.lower_bound >= dual.lower_bound - 1e-9


def test_a_problem_that_roof_duality_solves_is_proved():
    problem = QuadraticProblem([1.0, -2.0, 0.5], np.zeros((3, 3)), 0.25)
    solution = RoofDuality("greedy").sample_problem(problem)
    assert solution.sample.tolist() == [0, 1, 0]
    assert solution.info["fixed"] == 3
    assert solution.gap < 1e-12


def test_what_is_not_fixed_goes_to_the_child_with_its_initial_states():
    matrix = np.zeros((6, 6))
    # Two of the first four are to be one, and roof duality cannot say which.
    matrix[:4, :4] = 2.0 * (np.ones((4, 4)) - np.eye(4))
    problem = QuadraticProblem([-3.0, -3.0, -3.0, -3.1, 9.0, -9.0], matrix)
    best = all_states(problem)[[np.argmin(problem.energies(all_states(problem)))]]
    solution = RoofDuality("greedy").sample_problem(problem, initial_states=best, seed=1)
    assert 2 <= solution.info["fixed"] < 6
    assert solution.energy == pytest.approx(problem.energy(best[0]))


def test_roof_duality_asks_for_memory_first(monkeypatch):
    monkeypatch.setattr("solvers.host.machine.available_memory", lambda: 1e5)
    with pytest.raises(ProblemTooLargeError, match="roof duality on 100 variables needs"):
        roof_dual(convex_problem(100, 1))


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with -11"),
        ("import time; time.sleep(60)", "did not end in time"),
    ],
)
def test_a_flow_that_crashes_or_hangs_fixes_nothing(monkeypatch, tmp_path, program, says):
    path = tmp_path / "flow.py"
    path.write_text(program)
    monkeypatch.setattr("solvers.composites.roof._PROGRAM", path)
    problem = indefinite_problem(9, 5)
    solution = RoofDuality("exact").sample_problem(problem, time_limit=2.0)
    assert says in solution.info["roof_failed"]
    assert solution.info["fixed"] == 0
    optimum = problem.energies(all_states(problem)).min()
    assert -np.inf < solution.lower_bound <= optimum + 1e-9
    assert solution.energy >= optimum - 1e-9


def test_a_fixing_that_no_flow_bears_out_is_refused():
    problem = QuadraticProblem([-1.0, 2.0, 0.5], [[0, -3.0, 1], [-3, 0, 0], [1, 0, 0]])
    model = roof._Model.of(problem)
    for state in all_states(problem):
        fixed = dict(enumerate(state.tolist()))
        least = problem.energies(all_states(problem)).min()
        right = bool(problem.energy(state) <= least + 1e-12)
        assert roof._borne_out(model, fixed, Deadline()) <= right
    assert roof._borne_out(model, {0: 1, 1: 1, 2: 0}, Deadline())


def test_a_symmetric_model_has_nothing_fixed():
    chain = dimod.BQM({}, {(i, i + 1): 1.0 for i in range(19)}, 0.0, "SPIN")
    answer = RoofDuality("swap-tabu").sample(chain, seed=0)
    assert answer.info["fixed"] == 0
    assert answer.first.energy == -19.0
    assert answer.info["proved"]

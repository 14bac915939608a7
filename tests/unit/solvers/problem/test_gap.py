"""The gap: mean energies against enumeration, what must not change it, what it calls proved."""

import dimod
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_problems import odd_problem

from solvers.convex.exact import Enumeration, Exact
from solvers.convex.relax import Relax
from solvers.problem.gap import TOLERANCE, energy_step, gap_between, magnitude, mean_energy, raised
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import LowRank
from solvers.problem.solution import Solution
from solvers.testing import all_states


@given(st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_the_mean_energy_is_that_of_all_feasible_states(seed):
    problem = odd_problem(seed)
    bare = problem.with_linear(problem.linear, 0.0)
    energies = bare.energies(all_states(bare))
    scale = magnitude(problem)
    assert mean_energy(problem) == pytest.approx(energies.mean(), rel=1e-9, abs=1e-12 * scale)
    assert np.abs(energies).max() <= scale * (1 + 1e-12)


@given(st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_all_energies_are_multiples_of_the_step(seed):
    problem = odd_problem(seed)
    step = energy_step(problem)
    if step > 0:
        bare = problem.with_linear(problem.linear, 0.0)
        multiples = bare.energies(all_states(bare)) / step
        assert np.array_equal(multiples, np.rint(multiples))


def test_the_step_is_the_greatest_and_none_without_integers():
    assert energy_step(QuadraticProblem([6.0, -9.0], [[0.0, 12.0], [12.0, 0.0]])) == 3.0
    assert energy_step(QuadraticProblem([0.5, 0.25], np.zeros((2, 2)))) == 0.25
    assert energy_step(QuadraticProblem([0.1, 1.0], np.zeros((2, 2)))) == 0.0
    assert energy_step(QuadraticProblem([1e16, 1.0], np.zeros((2, 2)))) == 0.0
    assert energy_step(QuadraticProblem([1.0, 1.0], LowRank(np.ones((1, 2))))) == 0.0
    assert (raised(-2.5, 1.0), raised(-3.0, 3.0), raised(0.1, 0.0)) == (-2.0, -3.0, 0.1)


def test_a_gap_is_relative_to_chance_and_proved_within_its_tolerance_alone():
    problem = QuadraticProblem([-1.3, 2.7], np.zeros((2, 2)), 1e9)
    mean = 0.5 * (2.7 - 1.3)
    found = gap_between(problem, -1.3, -2.3)
    assert found.absolute == pytest.approx(1.0)
    assert found.relative == pytest.approx(1.0 / (mean + 2.3))
    assert not found.proved
    assert gap_between(problem, -1.3, -1.3 - 0.5 * TOLERANCE).proved
    assert not gap_between(problem, -1.3, -1.3 - 4.0 * TOLERANCE).proved
    assert not gap_between(problem, -1.3, -np.inf).proved


def test_integers_are_proved_by_less_than_a_step_and_by_nothing_else():
    """A number partition of sum 2 * 10^6: differences of 2 are next to nothing beside the mean."""
    numbers = np.array([1.0, 3.0, 999_998.0, 1_000_000.0])
    problem = QuadraticProblem(-4.0 * numbers.sum() * numbers, 8.0 * np.outer(numbers, numbers))
    step = energy_step(problem)
    assert step >= 1.0
    assert not gap_between(problem, 0.0, -step).proved
    assert gap_between(problem, 0.0, -0.9 * step).proved


@pytest.mark.parametrize("sampler", [Exact(), Relax(), Enumeration()])
@pytest.mark.parametrize(
    "problem",
    [
        QuadraticProblem(np.zeros(8), np.zeros((8, 8)), counts=3),
        QuadraticProblem(np.zeros(8), np.zeros((8, 8))),
        QuadraticProblem(np.full(8, 1.7), np.zeros((8, 8)), 1e9, counts=3),
        QuadraticProblem(np.full(12, 1.7), 1.3 - 1.3 * np.eye(12), -1e9, counts=5),
        QuadraticProblem(np.full(9, 0.1), 0.3 - 0.3 * np.eye(9), 0.0, [0, 1, 1] * 3, [1, 4]),
        QuadraticProblem(np.arange(5.0) / 7, LowRank(np.ones((2, 5)) / 3), counts=0),
        QuadraticProblem(np.arange(5.0) / 7, LowRank(np.ones((2, 5)) / 3), counts=5),
        QuadraticProblem([], np.zeros((0, 0)), 2.5),
    ],
)
def test_where_all_states_are_equal_everything_is_proved_with_a_gap_of_nothing(sampler, problem):
    solution = sampler.sample_problem(problem)
    assert (solution.gap, solution.absolute_gap, solution.proved) == (0.0, 0.0, True)
    assert solution.info["proved"] is True
    assert problem.feasible(solution.samples).all()


def test_a_constant_changes_neither_answer_nor_gap_nor_proof():
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(10, 30))
    for max_nodes in (2, None):
        told = []
        for offset in (0.0, 1e3, -1e6, 1e12):
            problem = QuadraticProblem(factor[0], LowRank(factor), offset, counts=14)
            solution = Exact().sample_problem(problem, seed=0, max_nodes=max_nodes)
            told.append((solution.sample.tolist(), solution.gap, solution.proved))
            assert solution.energy == pytest.approx(
                offset + problem.with_linear(problem.linear, 0.0).energy(solution.sample), rel=1e-15
            )
        assert all(one == told[0] for one in told)
        assert told[0][2] is (max_nodes is None)


def test_a_bound_that_was_added_to_a_large_offset_is_not_believed_too_far():
    problem = QuadraticProblem([1.3, -2.1], np.zeros((2, 2)), 1e9)
    exact = Solution.of(problem, [0, 1], lower_bound=1e9 - 2.1)
    assert not exact.proved
    assert exact.gap < 1e-6
    assert Exact().sample_problem(problem).proved


def test_a_float32_spin_model_is_solved_in_its_own_coefficients():
    rng = np.random.default_rng(0)
    fields = (1e3 * rng.normal(size=40)).astype(np.float32)
    couplings = np.triu(1e3 * rng.normal(size=(40, 40)), 1).astype(np.float32)
    single = dimod.Float32BQM(fields, couplings, "SPIN")
    double = dimod.Float64BQM(fields.astype(float), couplings.astype(float), "SPIN")
    answer = Relax().sample(single, seed=0)
    expected = double.energies(answer)
    assert answer.record.energy == pytest.approx(expected, rel=1e-12)
    assert answer.info["lower_bound"] <= expected.min()
    assert answer.info["proved"] is False
    problem = QuadraticProblem.from_bqm(single)
    other = QuadraticProblem.from_bqm(double)
    np.testing.assert_array_equal(problem.quadratic.dense(), other.quadratic.dense())
    np.testing.assert_array_equal(problem.linear, other.linear)

"""Counts from samplers that cannot count."""

import time

import dimod
import dimod.testing
import numpy as np
import pytest
from interrupting import interrupt_after
from scipy import sparse

from solvers import CardinalityPenalty, LagrangeCardinality, QuadraticProblem, Sparse, get_sampler
from solvers.errors import (
    InvalidOptionError,
    InvalidProblemError,
    ProblemTooLargeError,
    SamplerFailedError,
    UnknownOptionError,
)
from solvers.foreign import strength as strength_module
from solvers.foreign.border import ForeignSampler
from solvers.foreign.strength import first_strength, flip_costs, penalised, strength_bound
from solvers.problem.repair import repair
from solvers.testing import all_states, convex_problem, grouped_problem, indefinite_problem

CASES = [
    *(convex_problem(9, seed, counts=4) for seed in range(4)),
    *(indefinite_problem(9, seed, counts=3) for seed in range(4)),
    *(grouped_problem(seed) for seed in range(4)),
    indefinite_problem(8, 9, counts=0),
    indefinite_problem(8, 9, counts=8),
]


def optimum(problem):
    return problem.energies(all_states(problem)).min()


@pytest.mark.parametrize("problem", CASES)
def test_the_penalised_problem_is_the_formula(problem):
    states = all_states(problem.without_counts())
    violation = np.stack(
        [
            states[:, problem.groups == group].sum(axis=1) - count
            for group, count in enumerate(problem.counts)
        ]
    )
    expected = problem.energies(states) + 2.5 * np.square(violation).sum(axis=0)
    np.testing.assert_allclose(penalised(problem, 2.5).energies(states), expected, atol=1e-9)


@pytest.mark.parametrize("problem", CASES)
def test_at_the_bound_every_minimiser_is_feasible(problem):
    states = all_states(problem.without_counts())
    energies = penalised(problem, strength_bound(problem)).energies(states)
    lowest = states[energies <= energies.min() + 1e-12 * abs(energies.min())]
    assert problem.feasible(lowest).all()
    assert energies.min() == pytest.approx(optimum(problem))


def test_the_bound_is_needed():
    # Half of it lets the minimum break the count: the variable is worth 4, the penalty costs 2.
    problem = QuadraticProblem([-4.0, -4.0], np.zeros((2, 2)), counts=1)
    assert strength_bound(problem) == pytest.approx(4.0, rel=1e-5)
    half = penalised(problem, 0.5 * strength_bound(problem))
    states = all_states(problem.without_counts())
    assert not problem.feasible(states[[np.argmin(half.energies(states))]]).any()


@pytest.mark.parametrize("problem", CASES)
def test_flip_costs_are_never_exceeded(problem):
    up, down = flip_costs(problem)
    states = all_states(problem.without_counts())
    energies = dict(zip(map(tuple, states), problem.energies(states), strict=True))
    for x in states:
        for i in range(problem.num_variables):
            flipped = tuple(np.where(np.arange(x.size) == i, 1 - x, x))
            change = energies[flipped] - energies[tuple(x)]
            assert change <= (down[i] if x[i] else up[i]) + 1e-9


@pytest.mark.parametrize("problem", CASES)
def test_repair_is_exact_and_leaves_feasible_states_alone(problem):
    states = np.random.default_rng(0).integers(0, 2, (40, problem.num_variables), dtype=np.int8)
    repaired = repair(problem, states)
    assert problem.feasible(repaired).all()
    good = problem.feasible(states)
    np.testing.assert_array_equal(repaired[good], states[good])
    ones = [states[:, problem.groups == g].sum(axis=1) for g in range(problem.num_groups)]
    violation = sum(np.abs(n - c) for n, c in zip(ones, problem.counts, strict=True))
    np.testing.assert_array_equal((repaired != states).sum(axis=1), violation)


def test_repair_takes_the_cheapest_flip():
    problem = QuadraticProblem([3.0, 1.0, 2.0], np.zeros((3, 3)), counts=1)
    assert repair(problem, [[0, 0, 0], [1, 1, 1]]).tolist() == [[0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("composite", [CardinalityPenalty, LagrangeCardinality])
@pytest.mark.parametrize("problem", CASES)
def test_both_find_the_optimum_of_small_problems(composite, problem):
    solution = composite(get_sampler("sa")).sample_problem(
        problem, num_reads=20, num_sweeps=100, seed=3
    )
    assert problem.feasible(solution.samples).all()
    assert solution.energy == pytest.approx(optimum(problem))


class Stubborn:
    """Answers with all ones until the penalty is strong enough."""

    parameters = {"num_reads": []}  # noqa: RUF012

    def __init__(self, enough):
        self.enough = enough
        self.calls = 0

    def sample(self, bqm, num_reads=1):
        self.calls += 1
        feasible = [1] + [0] * (bqm.num_variables - 1)
        state = feasible if self.calls >= self.enough else [1] * bqm.num_variables
        return dimod.SampleSet.from_samples_bqm(([state], range(bqm.num_variables)), bqm)


def test_the_strength_is_raised_until_feasible():
    problem = convex_problem(6, 1, counts=1)
    child = Stubborn(enough=3)
    info = CardinalityPenalty(child).sample_problem(problem, growth=2.0).info["penalty"]
    strengths = [one["strength"] for one in info["rounds"]]
    assert strengths[0] == pytest.approx(first_strength(problem))
    assert strengths[2] == info["strength"] == pytest.approx(4.0 * strengths[0])
    assert info["feasible"] == pytest.approx(1 / 3)
    assert info["repaired"] == pytest.approx(2 / 3)


def test_the_strength_never_passes_the_bound():
    problem = convex_problem(6, 1, counts=1)
    child = Stubborn(enough=99)
    info = CardinalityPenalty(child).sample_problem(problem, growth=50.0, max_rounds=20).info
    strengths = [one["strength"] for one in info["penalty"]["rounds"]]
    assert max(strengths) == info["penalty"]["bound"] == strength_bound(problem)
    assert child.calls == len(strengths) < 20


def test_a_given_strength_is_used_once():
    child = Stubborn(enough=99)
    info = CardinalityPenalty(child).sample_problem(convex_problem(6, 1, counts=1), strength=0.5)
    assert [one["strength"] for one in info.info["penalty"]["rounds"]] == [0.5]


def test_rounds_and_time_are_limited():
    problem = convex_problem(6, 1, counts=1)
    for options, calls in (({"max_rounds": 2}, 2), ({"time_limit": 0.0}, 0)):
        child = Stubborn(enough=99)
        solution = CardinalityPenalty(child).sample_problem(problem, growth=1.01, **options)
        assert child.calls == calls
        assert problem.feasible(solution.samples).all()


@pytest.mark.parametrize("composite", [CardinalityPenalty, LagrangeCardinality])
def test_an_interrupted_solve_returns_the_best_so_far(composite):
    class Slow(Stubborn):
        def sample(self, bqm, num_reads=1):
            if self.calls >= 2:
                time.sleep(20.0)
            return super().sample(bqm)

    problem = convex_problem(6, 1, counts=1)
    child = Slow(enough=99)
    CardinalityPenalty(Stubborn(1)).sample_problem(problem)  # compiled
    with interrupt_after(1.0) as sent:
        solution = composite(child).sample_problem(problem)
    assert time.perf_counter() - sent[0] < 10
    assert solution.info["interrupted"] is True
    assert len(solution.info["penalty"]["rounds"]) == 2
    assert problem.feasible(solution.samples).all()


def test_interrupted_before_anything_was_found_swap_descent_answers():
    class Never(Stubborn):
        def sample(self, bqm, num_reads=1):
            time.sleep(20.0)

    problem = convex_problem(6, 1, counts=1)
    start = repair(problem, np.zeros(6))
    with interrupt_after(0.5):
        solution = CardinalityPenalty(Never(1)).sample_problem(problem)
    assert solution.info["instead"] == "swap descent: Never found nothing in time"
    assert problem.feasible(solution.samples).all()
    with interrupt_after(0.5):
        kept = CardinalityPenalty(Never(1)).sample_problem(problem, initial_states=start)
    assert kept.sample.tolist() == start[0].tolist()


def test_lagrange_keeps_a_sparse_problem_sparse(monkeypatch):
    size = 200
    chain = sparse.diags_array([np.ones(size - 1), np.ones(size - 1)], offsets=[-1, 1])
    problem = QuadraticProblem(np.linspace(-1, 1, size), Sparse(chain), counts=60)
    sizes = []
    child = get_sampler("sa")
    monkeypatch.setattr(
        ForeignSampler,
        "run",
        lambda self, bqm, options: (
            sizes.append(bqm.num_interactions) or self.child.sample(bqm, **options)
        ),
    )
    solution = LagrangeCardinality(child).sample_problem(problem, seed=1, num_reads=3)
    assert problem.feasible(solution.samples).all()
    assert set(sizes) == {size - 1}
    sizes.clear()
    CardinalityPenalty(child).sample_problem(problem, seed=1, num_sweeps=10)
    assert set(sizes) == {size * (size - 1) // 2}


def test_a_penalty_on_small_groups_stays_sparse():
    size = 400
    chain = sparse.diags_array([np.ones(size - 1), np.ones(size - 1)], offsets=[-1, 1])
    problem = QuadraticProblem(
        np.zeros(size), Sparse(chain), groups=np.arange(size) // 4, counts=[2] * 100
    )
    assert isinstance(penalised(problem, 1.0).quadratic, Sparse)
    assert penalised(problem, 1.0).to_bqm().num_interactions < 4 * size


def test_a_penalty_too_large_for_memory_says_what_it_needs(monkeypatch):
    monkeypatch.setattr("solvers.host.machine.available_memory", lambda: 1e6)
    with pytest.raises(ProblemTooLargeError, match=r"GiB are available; use LagrangeCardinality"):
        penalised(convex_problem(200, 1, counts=5), 1.0)


def test_options_of_child_and_composite():
    sampler = CardinalityPenalty(get_sampler("sa"))
    problem = convex_problem(6, 1, counts=2)
    assert {"strength", "growth", "num_sweeps", "seed", "cardinality"} <= set(sampler.parameters)
    for options, kind, message in (
        ({"nonsense": 1}, UnknownOptionError, "CardinalityPenalty has no option 'nonsense'"),
        ({"strength": -1.0}, InvalidOptionError, "strength must be a finite number above 0"),
        ({"growth": 1.0}, InvalidOptionError, "growth must be a finite number above 1"),
        ({"max_rounds": 0}, InvalidOptionError, "max_rounds"),
        ({"num_reads": 0}, InvalidOptionError, "num_reads"),
        ({"initial_states": [[1, 1, 1, 0, 0, 0]]}, InvalidOptionError, "exact counts"),
    ):
        with pytest.raises(kind, match=message):
            sampler.sample_problem(problem, **options)
    with pytest.raises(InvalidProblemError, match="has no counts"):
        strength_module.strength_bound(problem.without_counts())


def test_a_failing_child_is_named():
    class Fails:
        def sample(self, bqm):
            raise RuntimeError("licence expired")

    with pytest.raises(SamplerFailedError, match=r"Fails failed on 6 variables: .*licence expired"):
        CardinalityPenalty(Fails()).sample_problem(convex_problem(6, 1, counts=2))


def test_it_is_a_dimod_composite_on_spins_too():
    bqm = convex_problem(7, 5).to_bqm().change_vartype("SPIN", inplace=False)
    for composite in (CardinalityPenalty, LagrangeCardinality):
        sampler = composite(get_sampler("sa"))
        dimod.testing.assert_composite_api(sampler)
        answer = sampler.sample(bqm, cardinality=[1, 2], groups=[0, 0, 0, 1, 1, 1, 1], seed=1)
        assert ((answer.record.sample[:, :3] == 1).sum(axis=1) == 1).all()
        assert ((answer.record.sample[:, 3:] == 1).sum(axis=1) == 2).all()

"""Every sampler, ours and everyone else's, through the same suite."""

from typing import ClassVar

import dimod
import numpy as np
import pytest

from solvers import CardinalityPenalty, CountingSampler, LagrangeCardinality, Solution, get_sampler
from solvers.composites.roof import RoofDuality
from solvers.foreign.border import ForeignSampler
from solvers.registry import BUILTIN
from solvers.testing import check_sampler

# Row methods have a grid of their own; processors have mock ones in `test_dwave.py`.
ENTRIES = [
    entry
    for entry in BUILTIN
    if entry.solves == "QuadraticProblem" and entry.where not in ("QPU", "cloud")
]
OPTIONS = {
    "random": {"num_reads": 20_000},
    "openjij-sa": {"num_sweeps": 200},
    "openjij-sqa": {"num_sweeps": 200, "trotter": 4},
}
# Its own child, annealing, takes half a minute over the suite.
MADE = {"decompose": {"child": "greedy", "size": 8}}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_registered(entry):
    if not entry.installed:
        pytest.skip(entry.missing)
    sampler = get_sampler(entry.name, **MADE.get(entry.name, {}))
    assert isinstance(sampler, CountingSampler if entry.counts else ForeignSampler)
    outcome = check_sampler(sampler, **OPTIONS.get(entry.name, {}))
    assert ("same_seed" in outcome.passed) == entry.seed
    assert ("bound" in outcome.passed) == entry.bound
    if entry.counts:
        assert ("initial_states" in outcome.passed) == entry.warm_start


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (LagrangeCardinality(get_sampler("sa")), {"num_sweeps": 200}),
        (CardinalityPenalty(get_sampler("steepest")), {}),
        (RoofDuality("tabu"), {"num_reads": 5}),
        (dimod.ExactSolver(), {}),
    ],
    ids=["lagrange", "penalty", "roof", "dimod-exact"],
)
def test_composites_and_plain_dimod_samplers(sampler, options):
    check_sampler(sampler, **options)


# -- the suite notices ----------------------------------------------------------------------


class Base(dimod.Sampler):
    """A right answer by enumeration, to be spoiled."""

    parameters: ClassVar = {"seed": [], "num_reads": []}
    properties: ClassVar = {}

    def sample(self, bqm, seed=None, num_reads=1):
        return self.spoil(dimod.ExactSolver().sample(bqm).lowest())

    def spoil(self, answer):
        return answer


class WrongEnergy(Base):
    def spoil(self, answer):
        answer.record.energy += 1.0
        return answer


class WorstState(Base):
    def sample(self, bqm, seed=None, num_reads=1):
        answer = dimod.ExactSolver().sample(bqm)
        return answer.slice(len(answer) - 1, None)


class NoSeed(Base):
    generator = np.random.default_rng(0)

    def sample(self, bqm, seed=None, num_reads=1):
        return dimod.RandomSampler().sample(bqm, num_reads=3, seed=int(self.generator.integers(99)))


class CountsWrongly(CountingSampler):
    options: ClassVar = {"seed": "not used"}

    def sample_problem(self, problem, *, seed=None):
        return Solution.of(problem, np.ones((1, problem.num_variables)))


class OverBound(CountingSampler):
    @property
    def properties(self):
        return super().properties | {"bound": True}

    def sample_problem(self, problem):
        found = get_sampler("relax").sample_problem(problem)
        return Solution(found.samples, found.energies, found.energy + 1.0)


class Swallows(Base):
    """Takes any keyword without a word, as some do; the border refuses for it."""

    def sample(self, bqm, **options):
        return dimod.ExactSolver().sample(bqm).lowest()


def test_a_right_sampler_passes():
    outcome = check_sampler(Base())
    assert "optimal_when_small" in outcome.passed
    # The composite around it keeps states and time; nobody proves a bound.
    assert outcome.skipped.keys() == {"bound"}
    assert "unknown_option" in check_sampler(Swallows()).passed


@pytest.mark.parametrize(
    ("sampler", "check"),
    [
        (WrongEnergy(), "dimod_api"),
        (WorstState(), "optimal_when_small"),
        (NoSeed(), "same_seed"),
        (CountsWrongly(), "counts_exact"),
        (OverBound(), "bound"),
    ],
)
def test_a_wrong_sampler_is_found_out(sampler, check):
    with pytest.raises(AssertionError, match=check):
        check_sampler(sampler)

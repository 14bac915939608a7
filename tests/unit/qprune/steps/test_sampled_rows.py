"""Any sampler in place of the row search: one problem a row, the exact count, then a refit."""

import itertools

import dimod
import numpy as np
import pytest

from qprune.steps.reconstruct import Reconstruct, SampledRows
from solvers.errors import UnknownOptionError, UnknownSamplerError
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem

ROWS, INPUTS = 4, 8
BUDGETS = [Counts([3]), Counts(14), Counts.n_of_m(2, 4), Counts(np.array([0, 8, 1, 5]))]


def rows(budget, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(INPUTS, 12)) * random.uniform(0.3, 2, (INPUTS, 1))
    return RowProblem(x @ x.T, random.normal(size=(ROWS, INPUTS)), budget)


def best_mask(problem, row, counts, run):
    """Enumerated: values stay at the targets, every run keeps its count."""
    found = []
    for bits in itertools.product((False, True), repeat=INPUTS):
        kept = np.array(bits)
        if (kept.reshape(-1, run).sum(1) == counts).all():
            d = problem.targets[row] * ~kept
            found.append((d @ problem.gram @ d, bits))
    return np.array(min(found)[1])


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("compensate", [True, False])
def test_with_an_exact_sampler_every_row_is_the_enumerated_optimum(budget, compensate):
    problem = rows(budget)
    method = SampledRows("exact")
    solved = method.solve(problem, compensate=compensate, seed=0)
    run = budget.run(INPUTS)
    start = method.start(problem).mask
    for row in range(ROWS):
        counts = start[row].reshape(-1, run).sum(1)
        kept = best_mask(problem, row, counts, run)
        assert np.array_equal(solved.mask[row], kept), row
        values = np.where(kept, problem.targets[row], 0.0)
        if compensate and kept.any():
            inside = problem.gram[np.ix_(kept, kept)]
            values[kept] = np.linalg.solve(inside, problem.gram[kept] @ problem.targets[row])
        assert np.allclose(solved.values[row], values, atol=1e-8)
    assert np.array_equal(budget.of(solved.mask), budget.wanted(ROWS, INPUTS))


class Worst(dimod.Sampler):
    """Prunes nothing, whatever the count."""

    parameters = {}  # noqa: RUF012 - as dimod has it
    properties = {}  # noqa: RUF012

    def sample(self, bqm):
        state = np.zeros((1, bqm.num_variables), dtype=np.int8)
        return dimod.SampleSet.from_samples_bqm((state, list(bqm.variables)), bqm)


def test_an_object_that_cannot_count_is_repaired_and_never_worse_than_the_start():
    problem = rows(Counts([3]))
    method = SampledRows(Worst())
    solved = method.solve(problem, compensate=False, seed=0)
    start = method.start(problem).mask * problem.targets
    assert (solved.mask.sum(1) == 3).all()
    assert (problem.objectives(solved.values) <= problem.objectives(start) + 1e-12).all()


def test_one_seed_one_mask_and_the_row_search_is_no_worse():
    problem = rows(Counts([3]), seed=1)
    method = SampledRows("swap-anneal", {"num_sweeps": 20})
    one, again = (method.solve(problem, compensate=True, seed=5) for _ in range(2))
    assert np.array_equal(one.mask, again.mask)
    searched = Reconstruct(damping=0.0).solve(problem, compensate=True, seed=5)
    assert problem.objectives(searched.values).sum() <= problem.objectives(one.values).sum() + 1e-9


def test_a_sampler_or_an_option_that_is_not_there_is_refused_before_any_work():
    with pytest.raises(UnknownSamplerError, match="'sam'"):
        SampledRows("sam")
    with pytest.raises(UnknownOptionError, match="'speed'"):
        SampledRows("exact", {"speed": 3})

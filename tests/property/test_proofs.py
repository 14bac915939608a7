"""No proof is false and no bound above the optimum: many small problems against enumeration."""

import pytest
from odd_problems import check_answer, odd_problem, optimum_of

from solvers.exact import Enumeration, Exact
from solvers.relax import Relax


def checked(seeds):
    """The numbers of the problems that `Exact` did not prove."""
    unproved = []
    exact, relax, every = Exact(), Relax(), Enumeration()
    for seed in seeds:
        problem = odd_problem(seed)
        optimum = optimum_of(problem)
        try:
            check_answer(problem, every.sample_problem(problem), optimum)
            check_answer(problem, relax.sample_problem(problem, seed=0, num_sweeps=5), optimum)
            solution = exact.sample_problem(problem, seed=0, num_reads=1)
            check_answer(problem, solution, optimum)
        except Exception as error:
            raise AssertionError(f"problem {seed}: {error}") from error
        if not solution.proved:
            unproved.append(seed)
    return unproved


@pytest.mark.filterwarnings("error")
def test_ten_thousand_problems_of_every_kind():
    assert not checked(range(10_000))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_hundred_thousand_problems_of_every_kind(part):
    assert not checked(range(10_000 * part, 10_000 * (part + 1)))

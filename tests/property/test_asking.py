"""Odd values for the options of every sampler: an answer, or one line that says what is wrong.

Fifteen minutes of it: ``ASKING_EXAMPLES=1000000 timeout 900 python -m pytest -q --timeout 0
tests/property/test_asking.py``.
"""

import os
import warnings

import dimod
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solvers.ask import counting
from solvers.errors import SolverError
from solvers.problem.solution import Solution
from solvers.registry import get_sampler, list_samplers
from solvers.testing import grouped_problem, indefinite_problem

EXAMPLES = int(os.environ.get("ASKING_EXAMPLES", "6"))
NAMES = [
    entry.name
    for entry in list_samplers()
    if entry.installed
    and entry.builtin
    and entry.solves == "QuadraticProblem"
    and entry.where in ("CPU", "CPU, GPU")
]
PROBLEMS = {
    "counts": indefinite_problem(6, 1, counts=2),
    "groups": grouped_problem(2),
    "plain": indefinite_problem(6, 3),
}

numbers = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**30]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([np.int64(3), np.int8(2), np.float32(0.5), np.float64(2.0), np.bool_(True)]),
)
odd = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.text(max_size=5),
    st.sampled_from([b"x", object(), 1j, np.array([1.0, 2.0]), np.zeros((0, 0)), {}, set()]),
    st.lists(numbers, max_size=4),
    st.tuples(numbers, numbers),
    st.dictionaries(st.text(max_size=2), numbers, max_size=3),
)
sensible = {
    "num_reads": st.integers(1, 4),
    "num_sweeps": st.integers(1, 20),
    "num_steps": st.integers(1, 20),
    "seed": st.integers(0, 2**70),
    "time_limit": st.sampled_from([0, 0.0, 0.01, np.float32(0.01)]),
    "max_passes": st.integers(1, 3),
    "timeout": st.integers(1, 5),
    "device": st.sampled_from(["cpu", "mps", "meta", "cuda", "cuda:9", "abacus", "cpu:0"]),
    "beta_range": st.tuples(st.floats(-1, 10), st.floats(-1, 10)),
    "initial_states": st.one_of(
        st.lists(st.integers(-1, 1), min_size=6, max_size=6),
        st.dictionaries(st.integers(0, 7), st.integers(-1, 2), max_size=8),
        st.lists(st.dictionaries(st.integers(0, 5), st.integers(0, 1)), max_size=2),
        st.just((np.array([[1, 0, 0, 1, 0, 0]]), [5, 4, 3, 2, 1, 0])),
    ),
}
# Each of these may be asked for more work than a test has time for.
BOUNDED = {"num_reads": 4, "num_sweeps": 20, "num_steps": 20, "timeout": 5}


def options_of(sampler):
    known = sorted(set(sampler.parameters) - {"cardinality", "groups"})
    names = st.sampled_from([*known, *known, "no_such_option"])
    return st.lists(names, min_size=1, max_size=3, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries(
            {name: st.one_of(odd, sensible.get(name, odd)) for name in chosen}
        )
    )


def bounded(options, sampler):
    """Work in reason: a large number of reads or sweeps is valid, and would take for ever."""
    known = sampler.parameters
    usual = {name: most for name, most in BOUNDED.items() if name in known}
    usual |= {"time_limit": 0.02} if "time_limit" in known else {}
    return usual | options


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_an_answer_or_one_line(name, data):
    sampler = counting(get_sampler(name))
    options = bounded(data.draw(options_of(sampler)), sampler)
    problem = PROBLEMS[data.draw(st.sampled_from(sorted(PROBLEMS)))]
    by_model = data.draw(st.booleans())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            answer = ask(sampler, problem, options, by_model=by_model)
        except SolverError as error:
            message = str(error)
            answer = None
    if answer is None:
        assert message.splitlines() == [message], f"not one line: {message!r}"
        return
    if isinstance(answer, Solution):
        assert problem.feasible(answer.samples).all()
        np.testing.assert_allclose(answer.energies, problem.energies(answer.samples))
    else:
        assert len(answer)


def ask(sampler, problem, options, *, by_model):
    if not by_model:
        return sampler.sample_problem(problem, **options)
    bqm = problem.to_bqm().change_vartype(dimod.SPIN, inplace=False)
    counts = {} if problem.counts is None else {"cardinality": problem.counts}
    counts |= {} if problem.groups is None else {"groups": problem.groups}
    return sampler.sample(bqm, **counts, **options)

"""Whatever is written is read back with the same energy at every state."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from solvers import LowRank, QuadraticProblem
from solvers.formats.files import read_problem, write_problem
from solvers.testing import all_states

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def problems(draw, *, offset=True, low_rank=False):
    size = draw(st.integers(1, 6))
    linear = draw(arrays(np.float64, size, elements=NUMBERS))
    if low_rank and draw(st.booleans()):
        factor = draw(arrays(np.float64, (2, size), elements=st.floats(-1e3, 1e3)))
        quadratic = LowRank(factor)
    else:
        upper = draw(arrays(np.float64, (size, size), elements=NUMBERS))
        quadratic = np.triu(upper) + np.triu(upper).T
    return QuadraticProblem(linear, quadratic, draw(NUMBERS) if offset else 0.0)


def assert_same(back, problem):
    states = all_states(problem)
    expected = problem.energies(states)
    scale = 1.0 + np.abs(problem.linear).sum() + np.abs(problem.quadratic.dense()).sum()
    np.testing.assert_allclose(back.energies(states), expected, atol=1e-12 * scale)


@QUICK
@given(problem=problems(), suffix=st.sampled_from([".coo", ".qubo", ".bqm", ".json", ".cqm"]))
def test_any_problem(tmp_path, problem, suffix):
    path = tmp_path / f"p{suffix}"
    write_problem(problem, path)
    assert_same(read_problem(path), problem)


@QUICK
@given(problem=problems(offset=False), packed=st.booleans(), maximize=st.booleans())
def test_or_library(tmp_path, problem, packed, maximize):
    path = tmp_path / ("bqp.txt.gz" if packed else "bqp.txt")
    write_problem(problem, path)
    back = read_problem(path, maximize=maximize)
    states = all_states(problem)
    sign = -1.0 if maximize else 1.0
    scale = 1.0 + np.abs(problem.linear).sum() + np.abs(problem.quadratic.dense()).sum()
    np.testing.assert_allclose(
        sign * back.energies(states), problem.energies(states), atol=1e-12 * scale
    )


@QUICK
@given(
    problem=problems(low_rank=True), data=st.data(), labelled=st.booleans(), counted=st.booleans()
)
def test_npz_keeps_all_there_is(tmp_path, problem, data, labelled, counted):
    size = problem.num_variables
    problem = QuadraticProblem(
        problem.linear,
        problem.quadratic,
        problem.offset,
        counts=data.draw(st.integers(0, size)) if counted else None,
        labels=[f"v{i}" for i in range(size)] if labelled else None,
    )
    write_problem(problem, tmp_path / "p.npz")
    back = read_problem(tmp_path / "p.npz")
    assert type(back.quadratic) is type(problem.quadratic)
    assert back.labels == problem.labels
    np.testing.assert_array_equal(back.linear, problem.linear)
    np.testing.assert_array_equal(back.quadratic.dense(), problem.quadratic.dense())
    assert back.offset == problem.offset
    assert (back.counts is None) == (problem.counts is None)
    assert back.counts is None or back.counts.tolist() == problem.counts.tolist()


@QUICK
@given(weights=arrays(np.int64, (5, 5), elements=st.integers(-9, 9)))
def test_gset(tmp_path, weights):
    edges = [(i, j, w) for (i, j), w in np.ndenumerate(weights) if i < j and w]
    path = tmp_path / "g.gset"
    path.write_text(f"5 {len(edges)}\n" + "".join(f"{i + 1} {j + 1} {w}\n" for i, j, w in edges))
    problem = read_problem(path)
    for x in all_states(problem):
        assert problem.energy(x) == pytest.approx(-sum(w for i, j, w in edges if x[i] != x[j]))
    write_problem(problem, tmp_path / "again.gset")
    assert_same(read_problem(tmp_path / "again.gset"), problem)

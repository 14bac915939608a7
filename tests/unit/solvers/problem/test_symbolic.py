"""pyqubo both ways."""

import itertools

import numpy as np
import pytest

from solvers import QuadraticProblem, Sparse
from solvers.errors import InvalidProblemError
from solvers.problem.symbolic import broken_constraints, from_pyqubo, natural_key, to_pyqubo
from solvers.testing import all_states, convex_problem, grouped_problem, indefinite_problem

pyqubo = pytest.importorskip("pyqubo")
Binary, Constraint = pyqubo.Binary, pyqubo.Constraint
Placeholder, Spin = pyqubo.Placeholder, pyqubo.Spin

X = [Binary(f"x[{i}]") for i in range(12)]


def energy_by_hand(x, strength):
    return sum((i + 1) * x[i] for i in range(12)) - 3 * x[0] * x[11] + strength * (sum(x) - 3) ** 2


def expression():
    linear = sum((i + 1) * X[i] for i in range(12))
    constraint = Constraint((sum(X) - 3) ** 2, label="three")
    return linear - 3 * X[0] * X[11] + Placeholder("M") * constraint


def test_labels_are_in_natural_order_and_energies_right():
    problem = from_pyqubo(expression(), {"M": 2.0})
    assert problem.variables == tuple(f"x[{i}]" for i in range(12))
    states = np.random.default_rng(0).integers(0, 2, (50, 12))
    expected = [energy_by_hand(x, 2.0) for x in states]
    np.testing.assert_allclose(problem.energies(states), expected)


def test_any_order_can_be_asked_for():
    order = [f"x[{i}]" for i in (5, *range(5), *range(6, 12))]
    problem = from_pyqubo(expression().compile(), {"M": 0.0}, order=order, cardinality=3)
    assert problem.variables[0] == "x[5]"
    assert problem.linear[0] + 0.5 * problem.quadratic.diagonal()[0] == pytest.approx(6.0)
    assert problem.counts.tolist() == [3]
    for wrong in (order[1:], [*order, "y"], [*order, order[0]]):
        with pytest.raises(InvalidProblemError, match="order"):
            from_pyqubo(expression(), {"M": 0.0}, order=wrong)


def test_spins_and_higher_degrees():
    s, a, b, c = Spin("s"), Binary("a"), Binary("b"), Binary("c")
    problem = from_pyqubo(s * a - 2 * a * b * c)
    assert problem.variables[:4] == ("a", "b", "c", "s")
    (auxiliary,) = problem.variables[4:]
    assert " * " in auxiliary
    for x in itertools.product((0, 1), repeat=4):
        lowest = min(problem.energy([*x, extra]) for extra in (0, 1))
        assert lowest == pytest.approx((2 * x[3] - 1) * x[0] - 2 * x[0] * x[1] * x[2])
    with pytest.raises(InvalidProblemError, match="auxiliary variables such as"):
        from_pyqubo(s * a - 2 * a * b * c, cardinality=2)


def test_broken_constraints_are_named():
    sample = dict.fromkeys((f"x[{i}]" for i in range(12)), 0)
    assert broken_constraints(expression(), sample, {"M": 2.0}) == {"three": 9.0}
    sample |= {"x[0]": 1, "x[1]": 1, "x[2]": 1}
    assert broken_constraints(expression(), sample, {"M": 2.0}) == {}


def test_what_cannot_be_evaluated():
    with pytest.raises(InvalidProblemError, match="M is not provided"):
        from_pyqubo(expression())
    with pytest.raises(InvalidProblemError, match="not a pyqubo expression"):
        from_pyqubo(3.0)


@pytest.mark.parametrize(
    "problem",
    [
        indefinite_problem(6, 1),
        convex_problem(7, 2, counts=3),
        grouped_problem(3),
        QuadraticProblem([1.0, 2.0, 0.0], Sparse(np.eye(3, k=1) + np.eye(3, k=-1)), 4.0),
        QuadraticProblem([], np.zeros((0, 0)), 1.5),
    ],
)
def test_a_problem_and_back(problem):
    back = from_pyqubo(to_pyqubo(problem), {"strength": 10.0} if problem.counts is not None else {})
    # pyqubo knows only variables that occur with a coefficient.
    places = [int(name) for name in back.variables]
    states = all_states(problem)
    np.testing.assert_allclose(
        back.energies(states[:, places]), problem.energies(states), atol=1e-9
    )


def test_counts_become_constraints():
    problem = convex_problem(5, 2, counts=3)
    expression = to_pyqubo(problem)
    sample = {str(i): 1 for i in range(5)}
    broken = broken_constraints(expression, sample, {"strength": 1.0})
    assert broken == {"count-0": 4.0}


def test_natural_order():
    assert sorted(["x10", "x9", "a", "x[2][10]", "x[2][9]"], key=natural_key) == [
        "a", "x9", "x10", "x[2][9]", "x[2][10]",
    ]  # fmt: skip

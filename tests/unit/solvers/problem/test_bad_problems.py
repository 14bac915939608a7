"""Problems that have no meaning: one line that says what, where and what to do."""

import dimod
import numpy as np
import pytest
from scipy import sparse

from solvers import LowRank, QuadraticProblem, Sparse, get_sampler
from solvers.ask import counting
from solvers.errors import InvalidProblemError, ProblemTooLargeError
from solvers.formats.text import from_terms
from solvers.testing import all_states, convex_problem

ASYMMETRIC = [[0.0, 1.0], [2.0, 0.0]]
ZERO = np.zeros((2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuadraticProblem([np.nan, 1.0], ZERO), "linear has a non-finite entry at 0"),
        (lambda: QuadraticProblem([0, 0], [[0, np.inf], [np.inf, 0]]), r"entry at \(0, 1\)"),
        (lambda: QuadraticProblem([0, 0], ZERO, np.inf), "offset must be finite"),
        (lambda: LowRank([[np.nan, 1.0]]), "factor has a non-finite entry"),
        (lambda: Sparse(sparse.csr_array(np.diag([1.0, np.inf]))), "non-finite entry"),
        (lambda: QuadraticProblem([0, 0], ASYMMETRIC), r"not symmetric: .* pass \(Q \+ Q.T\) / 2"),
        (lambda: Sparse(sparse.csr_array(ASYMMETRIC)), "not symmetric"),
        (lambda: QuadraticProblem([0, 0], np.zeros((2, 3))), "must be square"),
        (lambda: QuadraticProblem([0, 0, 0], ZERO), "3 entries but quadratic has 2 rows"),
        (lambda: QuadraticProblem([0, 0], ZERO, counts=3), "2 variables; its count cannot be 3"),
        (lambda: QuadraticProblem([0, 0], ZERO, counts=-1), "count cannot be -1"),
        (lambda: QuadraticProblem([0, 0], ZERO, counts=0.5), "must be whole numbers"),
        (lambda: QuadraticProblem([0, 0], ZERO, groups=[0, 0]), "groups are given but no counts"),
        (lambda: QuadraticProblem([0, 0], ZERO, 0, [0, 2], [1, 1]), "group ids must lie in 0..1"),
        (lambda: QuadraticProblem([0, 0], ZERO, labels=["a", "a"]), "'a' occurs twice"),
        (lambda: QuadraticProblem([0, 0], ZERO, labels=["a"]), "1 labels for 2 variables"),
    ],
)
def test_senseless_problems(make, message):
    with pytest.raises(InvalidProblemError, match=message) as caught:
        make()
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", ["greedy", "sa"])
def test_models_of_another_kind(sampler):
    cqm = convex_problem(4, 1, counts=2).to_cqm()
    with pytest.raises(InvalidProblemError, match=r"a ConstrainedQuadraticModel is not a binary"):
        get_sampler(sampler).sample(cqm)
    with pytest.raises(InvalidProblemError, match="not a binary quadratic model"):
        get_sampler(sampler).sample({("a", "b"): 1.0})


@pytest.mark.parametrize("sampler", ["greedy", "sa"])
def test_groups_that_do_not_fit_the_model(sampler):
    bqm = dimod.BinaryQuadraticModel({"a": 1.0, "b": 2.0}, {}, 0.0, "BINARY")
    ready = counting(sampler)
    for groups, message in (
        ({"a": 0}, "variable 'b' has no group"),
        ({"a": 0, "b": 0, "c": 0}, "variable 'c' is not in the model"),
    ):
        with pytest.raises(InvalidProblemError, match=message):
            ready.sample(bqm, cardinality=1, groups=groups)


def test_cqms_that_are_not_counts():
    x, y = dimod.Binaries("xy")
    cqm = dimod.ConstrainedQuadraticModel()
    cqm.set_objective(x * y)
    cqm.add_constraint(2 * x + y == 1, label="weighted")
    with pytest.raises(InvalidProblemError, match="constraint 'weighted' is not an exact count"):
        QuadraticProblem.from_cqm(cqm)
    integer = dimod.ConstrainedQuadraticModel()
    integer.set_objective(dimod.Integer("i"))
    with pytest.raises(InvalidProblemError, match="variable 'i' is not binary"):
        QuadraticProblem.from_cqm(integer)


def test_a_soft_constraint_is_its_penalty_and_no_count():
    x, y, z = (dimod.Binary(name) for name in "xyz")
    cqm = dimod.ConstrainedQuadraticModel()
    cqm.set_objective(-5 * x - 4 * y + x * z)
    cqm.add_constraint(x + 2 * y + z == 1, label="soft", weight=0.3, penalty="quadratic")
    problem = QuadraticProblem.from_cqm(cqm)
    assert problem.counts is None
    for sample in all_states(problem):
        a, b, c = (int(sample[problem.variables.index(name)]) for name in "xyz")
        cost = -5 * a - 4 * b + a * c + 0.3 * (a + 2 * b + c - 1) ** 2
        assert problem.energy(sample) == pytest.approx(cost)
    assert problem.energies(all_states(problem)).min() == pytest.approx(-7.8)


@pytest.mark.parametrize("penalty", ["linear", "quadratic"])
@pytest.mark.parametrize("sense", ["==", "<=", ">="])
def test_soft_constraints_of_two_variables_cost_what_they_violate(sense, penalty):
    cqm = dimod.ConstrainedQuadraticModel()
    cqm.set_objective(-2 * dimod.Binary("x") + dimod.Binary("z"))
    left = 2 * dimod.Binary("x") + dimod.Binary("y") * dimod.Binary("x") - 0.5
    cqm.add_constraint(left, sense, rhs=1, label="soft", weight=3.0, penalty=penalty)
    problem = QuadraticProblem.from_cqm(cqm)
    for sample in all_states(problem):
        x, y, z = (int(sample[problem.variables.index(name)]) for name in "xyz")
        over = 2 * x + x * y - 0.5 - 1
        violation = {"==": abs(over), "<=": max(over, 0), ">=": max(-over, 0)}[sense]
        cost = 3.0 * violation ** (2 if penalty == "quadratic" else 1)
        assert problem.energy(sample) == pytest.approx(-2 * x + z + cost)


@pytest.mark.parametrize(
    ("make", "penalty"),
    [
        (lambda x, y, z: x + y + z == 1, "linear"),
        (lambda x, y, z: x + y + z <= 1, "quadratic"),
        (lambda x, y, z: x + z * y == 1, "quadratic"),
    ],
)
def test_soft_constraints_that_cost_something_else_are_refused(make, penalty):
    cqm = dimod.ConstrainedQuadraticModel()
    cqm.set_objective(dimod.Binary("x"))
    constraint = make(*(dimod.Binary(name) for name in "xyz"))
    cqm.add_constraint(constraint, label="soft", weight=2.0, penalty=penalty)
    with pytest.raises(InvalidProblemError, match="soft constraint 'soft' is no linear equality"):
        QuadraticProblem.from_cqm(cqm)


def test_a_problem_too_large_for_memory_says_how_much_it_needs():
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(
        ProblemTooLargeError, match=r"needs 5\d{8}\.\d GiB, .* are available"
    ) as caught:
        from_terms(10**16, none, none, np.zeros(0))
    assert not isinstance(caught.value, MemoryError)

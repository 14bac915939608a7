"""Small random problems of every kind, and what must be true of any answer to them."""

import dimod
import numpy as np
from scipy import sparse

from solvers.problem.gap import mean_energy, rounding
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Dense, LowRank, Sparse
from solvers.problem.solution import Solution
from solvers.testing import all_states

EPS = float(np.finfo(np.float64).eps)
COEFFICIENTS = (
    "real",
    "integer",
    "half",
    "tiny",
    "huge",
    "mixed",
    "penalty",
    "positive",
    "negative",
    "equal",
    "zero",
    "few",
)
FORMS = ("dense", "sparse", "low_rank", "convex", "spin32", "spin64", "binary32")
MOST_VARIABLES = 9


def odd_problem(seed: int) -> QuadraticProblem:
    """The problem of that number."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([0, 1, 2, *range(3, MOST_VARIABLES + 1)]))
    form, kind = str(rng.choice(FORMS)), str(rng.choice(COEFFICIENTS))
    density = rng.choice([0.2, 0.5, 1.0])
    linear = _drawn(rng, kind, size) * rng.choice([0.0, 1.0, 1.0, 10.0])
    upper = np.triu(_drawn(rng, kind, (size, size)) * (rng.random((size, size)) < density), 1)
    offset = float(rng.choice([0.0, 0.0, 1.0, -3.5, 1e5, -1e9, 1e12]))
    groups, counts = _counts(rng, size)
    if form in ("spin32", "spin64", "binary32"):
        return _of_model(form, linear, upper, offset, groups, counts)
    matrix = upper + upper.T
    if rng.random() < 0.5:
        matrix[np.diag_indices(size)] = _drawn(rng, kind, size)
    quadratic = Dense(matrix)
    if form == "sparse":
        quadratic = Sparse(sparse.csr_array(matrix))
    if form in ("low_rank", "convex"):
        rank = int(rng.integers(1, size + 2))
        with np.errstate(over="ignore"):
            factor = _drawn(rng, kind, (rank, size))
            factor = factor / 1e60 if kind == "huge" else factor
        quadratic = LowRank(factor) if form == "low_rank" else Dense(factor.T @ factor)
    return QuadraticProblem(linear, quadratic, offset, groups, counts)


def _drawn(rng: np.random.Generator, kind: str, shape):
    normal = rng.normal(size=shape)
    if kind == "integer":
        return rng.integers(-9, 10, shape) * float(rng.choice([1, 1, 7, 10**6]))
    if kind == "half":
        return rng.integers(-9, 10, shape) / 4.0
    if kind in ("tiny", "huge"):
        return normal * (1e-200 if kind == "tiny" else 1e120)
    if kind == "mixed":
        return normal * 10.0 ** rng.uniform(-9, 9, shape)
    if kind == "penalty":
        return np.where(rng.random(shape) < 0.3, 1e7 * np.rint(normal), normal)
    if kind in ("positive", "negative"):
        return np.abs(normal) * (1.0 if kind == "positive" else -1.0)
    if kind == "equal":
        return np.full(shape, normal.flat[0] if normal.size else 0.0)
    if kind == "zero":
        return np.zeros(shape)
    if kind == "few":
        return rng.choice([-1.0, 0.0, 0.1, 0.3], shape)
    return normal


def _counts(rng: np.random.Generator, size: int):
    num_groups = int(rng.choice([0, 0, 1, 1, 2, 3]))
    if num_groups == 0:
        return None, None
    groups = rng.integers(0, num_groups, size)
    return groups, [int(rng.integers(0, (groups == g).sum() + 1)) for g in range(num_groups)]


def _of_model(form, linear, upper, offset, groups, counts) -> QuadraticProblem:
    """By a dimod model of another type of numbers, or of spins."""
    single = form.endswith("32")
    kind = dimod.Float32BQM if single else dimod.Float64BQM
    if single:
        linear, upper = (np.clip(a, -1e30, 1e30).astype(np.float32) for a in (linear, upper))
    model = kind(linear, upper, 0.0, "BINARY" if form == "binary32" else "SPIN")
    model.offset = offset
    return QuadraticProblem.from_bqm(model, cardinality=counts, groups=groups)


def optimum_of(problem: QuadraticProblem) -> float:
    """The least energy, without the offset."""
    bare = problem.with_linear(problem.linear, 0.0)
    return float(bare.energies(all_states(bare)).min())


def check_answer(problem: QuadraticProblem, solution: Solution, optimum: float) -> None:
    """Counts, energies, bound and proof hold, given the optimum without the offset.

    A bound may be above the least of the evaluated energies by what these are rounded by.
    """
    assert problem.feasible(solution.samples).all(), "counts"
    assert np.array_equal(solution.energies, np.sort(solution.energies)), "order"
    bare = problem.with_linear(problem.linear, 0.0)
    energy = float(bare.energies(solution.samples[:1])[0])
    error = rounding(bare) / 64.0
    in_all = error + 4.0 * EPS * (abs(problem.offset) + abs(energy))
    assert np.allclose(
        solution.energies - problem.offset, bare.energies(solution.samples), rtol=0, atol=in_all
    ), "energies"
    assert solution.lower_bound - problem.offset <= optimum + in_all, (
        f"bound {solution.lower_bound - problem.offset!r} above the optimum {optimum!r}"
    )
    assert energy >= optimum - error, "below the optimum"
    assert solution.info.get("proved", solution.proved) == solution.proved
    if solution.proved:
        allowed = max(2e-10 * (mean_energy(problem) - optimum), rounding(bare)) + error
        assert energy <= optimum + allowed, f"proved at {energy!r}, optimum {optimum!r}"
    if solution.gap == 0.0:
        assert energy <= optimum + rounding(bare) + error, "gap 0 above the optimum"

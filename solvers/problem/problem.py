"""The problem of this package: quadratic, binary, with exact counts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import dimod
import numpy as np
from dimod.sym import Sense
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from solvers.errors import InvalidProblemError
from solvers.problem.quadratic import Dense, Floats, LowRank, Quadratic, Sparse, dense_or_sparse

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64

Integers = NDArray[np.int64]
#: States of a problem, shape (num_reads, n), 0 or 1.
States = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class QuadraticProblem:
    """Minimise E(x) = offset + linear.x + 1/2 x.quadratic.x over x in {0, 1}^n with exact counts.

    The quadratic part keeps its diagonal (for binary x, 1/2 Q_ii x_i^2 = 1/2 Q_ii x_i), so that
    a convex problem is visibly convex and a low-rank one needs no correction.

    Args:
        linear: shape (n,).
        quadratic: a `Quadratic`, or an array or ``scipy.sparse`` array of shape (n, n).
        offset: added to every energy.
        groups: shape (n,), the group 0..g-1 of every variable; None with ``counts`` means one
            group of all variables, None without means no counts at all (plain QUBO).
        counts: shape (g,), or one integer: number of variables of each group that are 1.
        labels: a name for each variable, in order; None means 0..n-1.

    Raises:
        InvalidProblemError: shapes disagree, a coefficient is not finite, the matrix is not
            symmetric, a count does not fit its group, or a label occurs twice.

    Example:
        >>> couplings = [[0, 2, 0], [2, 0, 0], [0, 0, 0]]
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], couplings, counts=2)
        >>> problem.energies([[1, 1, 0], [0, 1, 1]]).tolist()
        [2.0, -0.5]
    """

    linear: Float64[Floats, " n"]
    quadratic: Quadratic
    offset: float = 0.0
    groups: Int64[Integers, " n"] | None = None
    counts: Int64[Integers, " g"] | None = None
    labels: tuple[Hashable, ...] | None = None

    def __init__(
        self,
        linear: ArrayLike,
        quadratic: Quadratic | ArrayLike | sparse.sparray,
        offset: float = 0.0,
        groups: ArrayLike | None = None,
        counts: ArrayLike | None = None,
        labels: Sequence[Hashable] | None = None,
    ) -> None:
        linear = _finite_vector(linear)
        quadratic = _as_quadratic(quadratic)
        if quadratic.size != linear.size:
            raise InvalidProblemError(
                f"linear has {linear.size} entries but quadratic has {quadratic.size} rows"
            )
        if not np.isfinite(offset):
            raise InvalidProblemError(f"the offset must be finite, not {offset}")
        group_ids, group_counts = _checked_groups(linear.size, groups, counts)
        object.__setattr__(self, "linear", linear)
        object.__setattr__(self, "quadratic", quadratic)
        object.__setattr__(self, "offset", float(offset))
        object.__setattr__(self, "groups", group_ids)
        object.__setattr__(self, "counts", group_counts)
        object.__setattr__(self, "labels", _checked_labels(linear.size, labels))

    @property
    def num_variables(self) -> int:
        """Number of variables n."""
        return self.linear.size

    @property
    def num_groups(self) -> int:
        """Number of groups with an exact count; 0 for a plain QUBO."""
        return 0 if self.counts is None else self.counts.size

    @property
    def variables(self) -> tuple[Hashable, ...]:
        """The labels, in order."""
        return self.labels if self.labels is not None else tuple(range(self.num_variables))

    @cached_property
    def group_sizes(self) -> Int64[Integers, " g"]:
        """Number of variables in each group, shape (g,)."""
        if self.groups is None:
            return np.zeros(0, dtype=np.int64)
        return np.bincount(self.groups, minlength=self.num_groups).astype(np.int64)

    def energies(self, samples: ArrayLike) -> Float64[Floats, " reads"]:
        """E of every row of ``samples``, shape (reads, n) -> (reads,), in float64."""
        x = np.atleast_2d(np.asarray(samples, dtype=np.float64))
        return self.offset + (x @ self.linear + self.quadratic.values(x))

    def energy(self, sample: ArrayLike) -> float:
        """E of one state, shape (n,)."""
        return float(self.energies(sample)[0])

    def fields(self, samples: ArrayLike) -> Float64[Floats, "reads n"]:
        """dE/dx = linear + Q x of every row of ``samples``, shape (reads, n) -> (reads, n)."""
        x = np.atleast_2d(np.asarray(samples, dtype=np.float64))
        return self.linear + self.quadratic.product(x)

    def feasible(self, samples: ArrayLike) -> Bool[NDArray[np.bool_], " reads"]:
        """True for rows with the exact count in every group, shape (reads, n) -> (reads,)."""
        x = np.atleast_2d(np.asarray(samples))
        if self.groups is None or self.counts is None:
            return np.ones(len(x), dtype=bool)
        if self.num_groups == 1:
            return x.sum(axis=1, dtype=np.int64) == self.counts[0]
        one_hot = sparse.csr_array(
            (np.ones(self.num_variables), self.groups, np.arange(self.num_variables + 1)),
            shape=(self.num_variables, self.num_groups),
        )
        ones = np.asarray(x.astype(np.int64) @ one_hot)
        return np.all(ones == self.counts, axis=1)

    def with_linear(self, linear: ArrayLike, offset: float | None = None) -> QuadraticProblem:
        """The same problem with another linear part (and offset)."""
        return QuadraticProblem(
            linear,
            self.quadratic,
            self.offset if offset is None else offset,
            self.groups,
            self.counts,
            self.labels,
        )

    def without_counts(self) -> QuadraticProblem:
        """The same energy with no counts."""
        return QuadraticProblem(self.linear, self.quadratic, self.offset, labels=self.labels)

    # -- to and from dimod ------------------------------------------------------------------

    def to_bqm(self) -> dimod.BinaryQuadraticModel:
        """The energy as a BINARY model, without the counts (a BQM cannot hold them)."""
        linear = self.linear + 0.5 * self.quadratic.diagonal()
        if isinstance(self.quadratic, Sparse):
            upper = sparse.coo_array(sparse.triu(self.quadratic.matrix, k=1))
            bqm = dimod.BinaryQuadraticModel.from_numpy_vectors(
                linear, (upper.row, upper.col, upper.data), self.offset, dimod.BINARY
            )
        else:
            # dimod's dense constructor adds Q_ij and Q_ji, so each is halved.
            half = 0.5 * self.quadratic.dense()
            np.fill_diagonal(half, 0.0)
            bqm = dimod.BinaryQuadraticModel(linear, half, self.offset, dimod.BINARY)
        if self.labels is not None:
            bqm.relabel_variables(dict(enumerate(self.labels)))
        return bqm

    def to_cqm(self) -> dimod.ConstrainedQuadraticModel:
        """The energy with one equality constraint per group, named ``count-<group>``."""
        cqm = dimod.ConstrainedQuadraticModel()
        cqm.set_objective(self.to_bqm())
        if self.groups is not None and self.counts is not None:
            labels = self.variables
            for group, count in enumerate(self.counts.tolist()):
                members = [(labels[i], 1) for i in np.flatnonzero(self.groups == group)]
                cqm.add_constraint_from_iterable(members, "==", rhs=count, label=f"count-{group}")
        return cqm

    def to_ising(
        self,
    ) -> tuple[dict[Hashable, float], dict[tuple[Hashable, Hashable], float], float]:
        """(h, J, offset) over spins s = 2x - 1, as dimod's ``to_ising``."""
        h, couplings, offset = self.to_bqm().to_ising()
        strengths = {pair: float(bias) for pair, bias in couplings.items()}
        return {v: float(bias) for v, bias in h.items()}, strengths, float(offset)

    @classmethod
    def from_bqm(
        cls,
        bqm: dimod.BinaryQuadraticModel,
        *,
        cardinality: int | ArrayLike | None = None,
        groups: Mapping[Hashable, int] | ArrayLike | None = None,
    ) -> QuadraticProblem:
        """The problem of a BQM of either vartype; counts are numbers of ones (or of spins +1).

        Args:
            bqm: the model; its variables, in its order, become the labels.
            cardinality: one count, or one per group.
            groups: the group of each variable, by label or in the model's order.

        Raises:
            InvalidProblemError: see `QuadraticProblem`; also labels that the model lacks, and a
                model of another kind.
        """
        require_bqm(bqm)
        labels = tuple(bqm.variables)
        size = len(labels)
        given, (row, col, couplings), constant = bqm.to_numpy_vectors(variable_order=labels)[:3]
        linear, data = np.asarray(given, np.float64), np.asarray(couplings, np.float64)
        offset = float(constant)
        if bqm.vartype is not dimod.BINARY:
            # s = 2 x - 1, in float64 also for models of another dtype.
            offset += float(data.sum() - linear.sum())
            both, twice = np.concatenate([row, col]), np.concatenate([data, data])
            linear = 2.0 * (linear - np.bincount(both, weights=twice, minlength=size))
            data = 4.0 * data
        if isinstance(groups, Mapping):
            groups = _groups_by_label(labels, groups)
        coo = sparse.coo_array((data, (row, col)), shape=(size, size))
        symmetric = sparse.csr_array(coo + coo.T)
        return cls(
            linear,
            dense_or_sparse(symmetric),
            offset,
            groups=groups,
            counts=cardinality,
            labels=None if labels == tuple(range(size)) else labels,
        )

    @classmethod
    def from_ising(
        cls,
        h: Mapping[Hashable, float],
        J: Mapping[tuple[Hashable, Hashable], float],
        offset: float = 0.0,
        *,
        cardinality: int | ArrayLike | None = None,
        groups: Mapping[Hashable, int] | ArrayLike | None = None,
    ) -> QuadraticProblem:
        """The problem over x = (s + 1) / 2 of an Ising model; see `from_bqm`."""
        # Fields first: the variables then keep the order of ``h``.
        bqm = dimod.BinaryQuadraticModel(dimod.SPIN)
        bqm.add_linear_from(h)
        bqm.add_quadratic_from(J)
        bqm.offset = offset
        return cls.from_bqm(bqm, cardinality=cardinality, groups=groups)

    @classmethod
    def from_cqm(cls, cqm: dimod.ConstrainedQuadraticModel) -> QuadraticProblem:
        """The problem of a CQM whose hard constraints are exact counts over disjoint sets.

        A soft constraint adds its weight times its violation, or times that squared, as dimod
        defines it, to the energy, where that is quadratic: ``a.x == b`` with the quadratic
        penalty, and all of at most two variables.

        Raises:
            InvalidProblemError: a variable is not binary, a hard constraint is not
                ``sum of variables == count``, two constraints share a variable, or a variable
                is in none while others are; or a soft constraint costs something else.
        """
        others = [v for v in cqm.variables if cqm.vartype(v) is not dimod.BINARY]
        if others:
            raise InvalidProblemError(f"variable {others[0]!r} is not binary")
        objective = dimod.BinaryQuadraticModel(dimod.BINARY)
        for v in cqm.variables:
            objective.add_linear(
                v, cqm.objective.get_linear(v) if v in cqm.objective.variables else 0.0
            )
        for u, v, bias in cqm.objective.iter_quadratic():
            objective.add_quadratic(u, v, bias)
        objective.offset = cqm.objective.offset
        groups: dict[Hashable, int] = {}
        counts: list[int] = []
        for label, constraint in cqm.constraints.items():
            if constraint.lhs.is_soft():
                _add_penalty(objective, label, constraint)
                continue
            counts.append(_count_of(label, constraint, groups, len(counts)))
        if not counts:
            return cls.from_bqm(objective)
        return cls.from_bqm(objective, cardinality=counts, groups=groups)


def require_bqm(model: Any) -> None:
    """Refuse what is not a binary quadratic model.

    Raises:
        InvalidProblemError: says what it is and what to pass instead.
    """
    if not isinstance(model, dimod.BinaryQuadraticModel):
        raise InvalidProblemError(
            f"a {type(model).__name__} is not a binary quadratic model; pass a dimod BQM of "
            "vartype BINARY or SPIN (a CQM of counts: QuadraticProblem.from_cqm)"
        )


def _count_of(label: Any, constraint: Any, groups: dict[Hashable, int], group: int) -> int:
    """The count of one CQM constraint; its variables are entered into ``groups``."""
    lhs = constraint.lhs
    is_sum = lhs.is_linear() and all(lhs.get_linear(v) == 1 for v in lhs.variables)
    count = constraint.rhs - lhs.offset
    if constraint.sense is not Sense.Eq or not is_sum or count != round(count):
        raise InvalidProblemError(
            f"constraint {label!r} is not an exact count (sum of variables == integer)"
        )
    for v in lhs.variables:
        if groups.setdefault(v, group) != group:
            raise InvalidProblemError(f"variable {v!r} is in two constraints; groups are disjoint")
    return int(count)


def _add_penalty(objective: dimod.BinaryQuadraticModel, label: Any, constraint: Any) -> None:
    """Add what a soft CQM constraint costs: weight times its violation, or that squared."""
    lhs, sense = constraint.lhs, constraint.sense
    power = 2 if lhs.penalty() == "quadratic" else 1
    if sense is Sense.Eq and power == 2 and lhs.is_linear():
        terms = [(v, lhs.get_linear(v)) for v in lhs.variables]
        objective.add_linear_equality_constraint(
            terms, lagrange_multiplier=lhs.weight(), constant=lhs.offset - constraint.rhs
        )
        return
    if len(lhs.variables) > 2:
        raise InvalidProblemError(
            f"soft constraint {label!r} is no linear equality with a quadratic penalty, and its "
            "cost is quadratic only of two variables; make it hard, or write it as an objective"
        )

    def cost(*ones: Hashable) -> float:
        over = float(lhs.energy({v: int(v in ones) for v in lhs.variables}) - constraint.rhs)
        violation = {Sense.Eq: abs(over), Sense.Le: max(over, 0.0), Sense.Ge: max(-over, 0.0)}
        return lhs.weight() * violation[sense] ** power

    objective.offset += cost()
    for v in lhs.variables:
        objective.add_linear(v, cost(v) - cost())
    for u, v in combinations(lhs.variables, 2):
        objective.add_quadratic(u, v, cost(u, v) - cost(u) - cost(v) + cost())


def _finite_vector(linear: ArrayLike) -> Float64[Floats, " n"]:
    vector = np.ascontiguousarray(linear, dtype=np.float64)
    if vector.ndim != 1:
        raise InvalidProblemError(f"linear must have shape (n,), not {vector.shape}")
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        raise InvalidProblemError(f"linear has a non-finite entry at {bad[0]}")
    return vector


def _as_quadratic(quadratic: Any) -> Quadratic:
    if isinstance(quadratic, Dense | LowRank | Sparse):
        return quadratic
    if sparse.issparse(quadratic):
        return Sparse(quadratic)
    if isinstance(quadratic, Quadratic):
        return quadratic
    array = np.asarray(quadratic, dtype=np.float64)
    return Dense(array.reshape(0, 0) if array.size == 0 else array)


def _checked_groups(
    size: int, groups: ArrayLike | None, counts: ArrayLike | None
) -> tuple[Integers | None, Integers | None]:
    if counts is None:
        if groups is not None:
            raise InvalidProblemError("groups are given but no counts; pass one count per group")
        return None, None
    wanted = np.atleast_1d(np.asarray(counts))
    whole = wanted.astype(np.int64)
    if not np.array_equal(whole, wanted):
        raise InvalidProblemError(f"counts must be whole numbers, not {wanted.tolist()}")
    ids = np.zeros(size, np.int64) if groups is None else np.ascontiguousarray(groups, np.int64)
    if ids.shape != (size,):
        raise InvalidProblemError(f"groups must have shape ({size},), not {ids.shape}")
    if size and (ids.min() < 0 or ids.max() >= whole.size):
        raise InvalidProblemError(
            f"group ids must lie in 0..{whole.size - 1} (one count per group), "
            f"but run from {ids.min()} to {ids.max()}"
        )
    sizes = np.bincount(ids, minlength=whole.size)
    for group in np.flatnonzero((whole < 0) | (whole > sizes)):
        raise InvalidProblemError(
            f"group {group} has {sizes[group]} variables; its count cannot be {whole[group]}"
        )
    return ids, whole


def _checked_labels(size: int, labels: Sequence[Hashable] | None) -> tuple[Hashable, ...] | None:
    if labels is None:
        return None
    names = tuple(labels)
    if len(names) != size:
        raise InvalidProblemError(f"{len(names)} labels for {size} variables")
    if len(set(names)) != size:
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InvalidProblemError(f"label {twice!r} occurs twice")
    return names


def _groups_by_label(labels: Sequence[Hashable], groups: Mapping[Hashable, int]) -> Integers:
    missing = [v for v in labels if v not in groups]
    unknown = [v for v in groups if v not in set(labels)]
    if missing or unknown:
        which = f"{missing[0]!r} has no group" if missing else f"{unknown[0]!r} is not in the model"
        raise InvalidProblemError(f"groups do not fit the model: variable {which}")
    return np.array([groups[v] for v in labels], dtype=np.int64)

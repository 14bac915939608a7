"""Thousands of row problems that share one matrix: the layer-reconstruction problem.

A linear layer with inputs X and weights W (one output a row) is asked to keep its outputs:
sum over rows r of 1/2 |(w_r - w0_r) X|^2 = 1/2 (w_r - w0_r)' A (w_r - w0_r) with A = X X'. Every
row is its own quadratic, all share A, and `Counts` say how many weights are kept where.
`solvers.rows.starts` gives masks to start from, `solvers.rows.search.solve_rows` improves them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from numpy.typing import ArrayLike

from solvers.errors import InvalidOptionError, InvalidProblemError
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Dense, Floats
from solvers.rows.counts import Counts
from solvers.rows.refit import Array, as_host, as_like, objectives

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64


@dataclass(frozen=True, eq=False)
class RowProblem:
    """Minimise sum_r 1/2 (w_r - w0_r)' A (w_r - w0_r) over masks of these ``counts`` (and values).

    Args:
        gram: A = X X', shape (inputs, inputs), positive semidefinite. A numpy array is solved
            on the host in float64, a torch tensor on its device in its dtype.
        targets: w0, shape (rows, inputs).
        counts: of the weights kept.

    Raises:
        InvalidProblemError: shapes disagree, an entry is not finite, A is not symmetric or has
            a negative diagonal entry, or the counts do not fit.

    Example:
        >>> from solvers.rows.counts import Counts
        >>> gram, targets = np.diag([1.0, 9.0, 4.0]), np.array([[3.0, 2.0, 1.0]])
        >>> problem = RowProblem(gram, targets, Counts([1]))
        >>> problem.objectives(np.array([[3.0, 0.0, 0.0]])).tolist()
        [20.0]
    """

    gram: Array
    targets: Array
    counts: Counts

    def __post_init__(self) -> None:
        if not is_torch_array(self.gram):
            object.__setattr__(self, "gram", np.ascontiguousarray(self.gram, dtype=np.float64))
            object.__setattr__(self, "targets", np.ascontiguousarray(self.targets, np.float64))
        _check_arrays(self.gram, self.targets)
        self.counts.check(self.num_rows, self.num_inputs)

    @property
    def num_rows(self) -> int:
        """Rows of the layer: its outputs."""
        return self.targets.shape[0]

    @property
    def num_inputs(self) -> int:
        """Inputs of the layer."""
        return self.targets.shape[1]

    def on(self, device: str, dtype: str = "float32") -> RowProblem:
        """The same problem as torch tensors on ``device`` ("cuda", "cpu")."""
        import torch

        where, kind = torch.device(device), getattr(torch, dtype)
        gram, targets = (torch.as_tensor(a).to(where, kind) for a in (self.gram, self.targets))
        return RowProblem(gram, targets, self.counts)

    def objectives(self, values: Float[Array, "rows inputs"]) -> Float64[Array, " rows"]:
        """1/2 (w - w0)' A (w - w0) of every row of ``values``, in float64, shape (rows,)."""
        return objectives(
            *(as_like(a, self.gram, "float64") for a in (self.gram, self.targets, values))
        )

    def checked_mask(self, mask: ArrayLike) -> Bool[Array, "rows inputs"]:
        """A copy of ``mask`` as booleans where the problem is.

        Raises:
            InvalidOptionError: its shape or its counts are not the problem's.
        """
        self._check_shape("mask has", mask)
        own = as_like(mask, self.targets, "bool") | False
        has = self.counts.of(own)
        wants = self.counts.wanted(self.num_rows, self.num_inputs)
        wrong = np.argwhere(has != wants)
        if wrong.size:
            where = tuple(wrong[0].tolist())
            raise InvalidOptionError(
                f"the mask keeps {has[where]} weights where the problem keeps "
                f"{wants[where]} (count {where} of {self.counts})"
            )
        return own

    def checked_values(self, values: ArrayLike) -> Float[Array, "rows inputs"]:
        """A copy of ``values`` where the problem is.

        Raises:
            InvalidOptionError: its shape is not the problem's, or an entry is not finite.
        """
        self._check_shape("values have", values)
        own = as_like(values, self.targets) + 0.0
        if not bool(array_namespace(own).isfinite(own).all()):
            raise InvalidOptionError("the values have an entry that is not finite")
        return own

    def _check_shape(self, what: str, array: ArrayLike) -> None:
        has, wants = tuple(np.shape(array)), tuple(self.targets.shape)
        if has != wants:
            raise InvalidOptionError(f"the {what} shape {has}, the targets {wants}")

    def row_as_problem(self, row: int, kept: int | None = None) -> QuadraticProblem:
        """Row ``row`` without compensation, as the problem every other sampler takes.

        With kept values at w0 and x = 1 for pruned, w - w0 = -x w0, so the objective is
        1/2 x.Q.x with Q_ij = w0_i w0_j A_ij; a group a run, counts of pruned weights.

        Args:
            row: which.
            kept: how many weights it keeps; needed where the count is the whole matrix'.

        Raises:
            InvalidProblemError: ``kept`` is missing, or given against the problem's own counts.
        """
        inputs = self.num_inputs
        run = self.counts.run(inputs)
        if self.counts.trades is (kept is None):
            raise InvalidProblemError(
                "kept must be given exactly where the count is the whole matrix'"
            )
        if kept is None:
            counts = np.ravel(self.counts.wanted(self.num_rows, inputs)[row])
        else:
            counts = np.array([kept])
        w0 = as_host(self.targets[row]).astype(np.float64)
        matrix = as_host(self.gram).astype(np.float64) * w0[:, None] * w0
        return QuadraticProblem(
            np.zeros(inputs),
            Dense(0.5 * (matrix + matrix.T)),
            groups=np.arange(inputs) // run,
            counts=run - counts,
        )


@dataclass(frozen=True, eq=False)
class RowSolution:
    """Masks and values of all rows.

    Attributes:
        mask: True where kept, shape (rows, inputs).
        values: the weights, exactly 0 where pruned, same shape.
        objectives: 1/2 (w - w0)' A (w - w0) of every row, float64, shape (rows,).
        start: the same for the start, after its refit where values may move.
        swaps: exchanges of a kept for a pruned weight inside a row.
        trades: exchanges between rows (where the matrix has one count).
        rounds: rounds of swaps and refit.
        finished: False where a limit ended the search before no move improved.
    """

    mask: Bool[Array, "rows inputs"]
    values: Float[Array, "rows inputs"]
    objectives: Float64[Floats, " rows"]
    start: Float64[Floats, " rows"]
    swaps: int
    trades: int
    rounds: int
    finished: bool = field(default=True)

    @property
    def objective(self) -> float:
        """The sum over all rows."""
        return float(self.objectives.sum())


def _check_arrays(gram: Array, targets: Array) -> None:
    xp = array_namespace(gram)
    if is_torch_array(gram) is not is_torch_array(targets):
        raise InvalidProblemError("gram and targets must both be numpy arrays or both tensors")
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise InvalidProblemError(f"gram must be square, not of shape {tuple(gram.shape)}")
    if targets.ndim != 2 or targets.shape[1] != gram.shape[0]:
        raise InvalidProblemError(
            f"targets must have shape (rows, {gram.shape[0]}), not {tuple(targets.shape)}"
        )
    for name, array in (("gram", gram), ("targets", targets)):
        if not bool(xp.isfinite(array).all()):
            where = tuple(np.argwhere(~np.isfinite(as_host(array)))[0].tolist())
            raise InvalidProblemError(
                f"{name} has a non-finite entry at {where}; check the layer's inputs and weights"
            )
    if not len(gram):
        return
    largest = float(abs(gram).max())
    if float(abs(gram - gram.T).max()) > 1e-5 * largest:
        raise InvalidProblemError("gram is not symmetric; pass X @ X.T")
    if float(gram.diagonal().min()) < 0:
        where = int(gram.diagonal().argmin())
        raise InvalidProblemError(f"gram has a negative diagonal entry at {where}; pass X @ X.T")

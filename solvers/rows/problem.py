"""Thousands of row problems that share one matrix: the layer-reconstruction problem.

A linear layer with inputs X and weights W (one output a row) is asked to keep its outputs:
sum over rows r of 1/2 |(w_r - w0_r) X|^2 = 1/2 (w_r - w0_r)' A (w_r - w0_r) with A = X X'. Every
row is its own quadratic, all share A, and `Counts` say how many weights are kept where.
Where a loss behind the layer feels some directions of its outputs more than others, rows are
coupled by G = E[g g'], g the loss' derivative by the outputs: 1/2 tr(G (W - W0) A (W - W0)'). That
is the loss' second order with the layer's curvature as a Kronecker product (Martens and Grosse
2015, arXiv 1503.05671; for pruning van der Ouderaa et al. 2023, arXiv 2312.17244).
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
        felt: G, shape (rows, rows), positive semidefinite; None = rows on their own, G = I.
            `solvers.rows.search` solves such problems; those who go row by row do not.

    Raises:
        InvalidProblemError: shapes disagree, an entry is not finite, A or G is not symmetric or
            has a negative diagonal entry, or the counts do not fit.

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
    felt: Array | None = None

    def __post_init__(self) -> None:
        names = ("gram", "targets") if self.felt is None else ("gram", "targets", "felt")
        for name in () if is_torch_array(self.gram) else names:
            array = np.ascontiguousarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, array)
        _check_arrays(self.gram, self.targets, self.felt)
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
        arrays = (self.gram, self.targets, self.felt)
        gram, targets, felt = (
            None if array is None else torch.as_tensor(array).to(where, kind) for array in arrays
        )
        return RowProblem(gram, targets, self.counts, felt)

    def objectives(self, values: Float[Array, "rows inputs"]) -> Float64[Array, " rows"]:
        """1/2 (w - w0)' A (w - w0) of every row of ``values``, in float64, shape (rows,).

        Of coupled rows, the row's part of the sum: 1/2 e_r' (G E A)_r, E = W - W0.
        """
        gram, targets, own = (
            as_like(a, self.gram, "float64") for a in (self.gram, self.targets, values)
        )
        if self.felt is None:
            return objectives(gram, targets, own)
        change = own - targets
        felt = as_like(self.felt, self.gram, "float64")
        return 0.5 * ((felt @ (change @ gram)) * change).sum(-1)

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


def _check_arrays(gram: Array, targets: Array, felt: Array | None) -> None:
    xp = array_namespace(gram)
    given = {"gram": gram, "targets": targets} | ({} if felt is None else {"felt": felt})
    if len({is_torch_array(array) for array in given.values()}) > 1:
        raise InvalidProblemError(f"{', '.join(given)} must all be numpy arrays or all tensors")
    for name in ("gram", "felt"):
        shape = tuple(given[name].shape) if name in given else (0, 0)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise InvalidProblemError(f"{name} must be square, not of shape {shape}")
    rows = targets.shape[0] if felt is None else len(felt)
    if tuple(targets.shape) != (rows, len(gram)):
        raise InvalidProblemError(
            f"targets must have shape ({'rows' if felt is None else rows}, {len(gram)}), "
            f"not {tuple(targets.shape)}"
        )
    for name, array in given.items():
        if not bool(xp.isfinite(array).all()):
            where = tuple(np.argwhere(~np.isfinite(as_host(array)))[0].tolist())
            raise InvalidProblemError(
                f"{name} has a non-finite entry at {where}; check the layer's inputs and weights"
            )
        if name != "targets" and len(array):
            _check_moments(name, array)


def _check_moments(name: str, moments: Array) -> None:
    if float(abs(moments - moments.T).max()) > 1e-5 * float(abs(moments).max()):
        raise InvalidProblemError(f"{name} is not symmetric; pass X @ X.T")
    if float(moments.diagonal().min()) < 0:
        where = int(moments.diagonal().argmin())
        raise InvalidProblemError(f"{name} has a negative diagonal entry at {where}; pass X @ X.T")

"""Second moments of a matrix' inputs, summed over batches.

Pruning methods for one matrix: those of the literature, and the row samplers.

A method is a strategy with one method, `solve`, and declares its inputs: targets from the dense
network's outputs or from the present inputs, and inputs collected once for a block
or again after each group of matrices with the same input.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from qprune.distributed.ranks import ALONE, Ranks
from qprune.errors import NonFiniteError
from qprune.network.groups import named
from qprune.steps.solve import answer
from solvers import Ask
from solvers.rows.problem import RowProblem
from solvers.rows.refit import Array, as_host, refit
from solvers.rows.search import solve_coupled, solve_rows
from solvers.rows.starts import Start, admm, magnitude, obs_sweep, wanda

# Types whose significands have no more bits than TF32's.
_EXACT_IN_TF32 = (torch.float16, torch.bfloat16)


@contextmanager
def _tensor_cores(use: bool) -> Generator[None]:
    """Take float32 products in TF32 within the context, if ``use``."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = use or before
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class Moments:
    """Sums X X' of the inputs X, and X0 X' with the dense network's inputs X0 for the same tokens.

    Of a matrix that adds to a residual stream it is Y X' instead, Y what the matrix should add
    (`qprune.moving.residuals`).

    Products are taken in float32 or better, whatever the model's dtype, and summed in float64
    (float32 on a device). A device multiplies float16 or bfloat16 inputs on its tensor
    cores: TF32 holds such numbers exactly, and sums in float32.

    Args:
        name: for messages.
        inputs: number of inputs.
        device: device of the sums.
        with_dense: True if dense inputs are given too.
        ranks: processes, each of which adds its own tokens, all at the same time.
        adding: rows of the matrix, if what it should add is given; 0 = it is not.
    """

    def __init__(
        self,
        name: str,
        inputs: int,
        device: torch.device,
        with_dense: bool,
        ranks: Ranks = ALONE,
        adding: int = 0,
    ) -> None:
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        self.name = name
        self.tokens = 0
        self.gram = torch.zeros(inputs, inputs, dtype=dtype, device=device)
        self.cross = torch.zeros_like(self.gram) if with_dense else None
        self.wanted = torch.zeros(adding, inputs, dtype=dtype, device=device) if adding else None
        self._ranks = ranks
        sums = (self.gram, self.cross, self.wanted)
        self._sums = ranks.summing([t for t in sums if t is not None])

    def add(self, x: Tensor, dense: Tensor | None = None, wanted: Tensor | None = None) -> None:
        """Add inputs (..., inputs) of some tokens, and for the same ones the dense network's.

        Args:
            x: inputs.
            dense: the dense network's.
            wanted: what the matrix should add to a residual stream, shape (..., rows).

        Raises:
            NonFiniteError: NaN or Inf among them.
        """
        exact_in_tf32 = x.is_cuda and x.dtype in _EXACT_IN_TF32
        x = _flat(x)
        with _tensor_cores(exact_in_tf32):
            gram = product(x, x)
        if self._ranks.any(not bool(torch.isfinite(gram.diagonal()).all())):
            raise NonFiniteError(
                f"the inputs of layer {self.name!r} hold NaN or Inf, or overflow; look at the "
                "layers before it, or load the model in a wider dtype"
            )
        parts = [gram]
        if self.cross is not None:
            with _tensor_cores(exact_in_tf32):
                parts.append(torch.zeros_like(gram) if dense is None else product(_flat(dense), x))
        if self.wanted is not None:
            assert wanted is not None
            parts.append(product(_flat(wanted), x))
        self._sums.add(parts, self._ranks.size)
        self.tokens += len(x)

    def close(self) -> None:
        """Finish the sums, after all ranks have added their tokens."""
        self._sums.close()
        self.tokens = self._ranks.total(self.tokens)


def product(x: Tensor, y: Tensor) -> Tensor:
    """X' Y of (tokens, n) and (tokens, m), in their dtype.

    On a host numpy's library is taken: torch's may be half as fast on processors of other makers.
    """
    if x.device.type != "cpu":
        return x.T @ y
    with np.errstate(all="ignore"):  # Infinite sums are found by the caller.
        return torch.from_numpy(x.detach().numpy().T @ y.detach().numpy())


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Output error of a matrix: (W - targets) gram (W - targets)' up to a constant.

    Attributes:
        gram: A, shape (inputs, inputs), symmetric.
        targets: shape (rows, inputs).
    """

    gram: Tensor
    targets: Tensor


def quadratic(
    moments: Moments, weights: Tensor, damping: float, dense_share: float = 1.0
) -> Quadratic:
    """Return |W X - Y|^2 + ridge |W - W0|^2 around its unconstrained optimum, Y = W0 X0.

    With C = X0 X' that is W0 (C + ridge) (A + ridge)^-1; it is W0 itself where the inputs are the
    dense network's own (or C is not known), as SparseGPT and ALPS take them. Of a matrix that adds
    to a residual stream Y is what it should add.

    Args:
        moments: moments of the inputs.
        weights: W0, shape (rows, inputs).
        damping: the ridge, as a share of the mean of A's diagonal.
        dense_share: position of the optimum between W0 (0) and the one for Y (1).
    """
    gram = 0.5 * (moments.gram + moments.gram.T)
    ridge = damping * gram.diagonal().mean()
    # Without tokens the error is the squared change of the weights.
    shift = torch.where(ridge > 0, ridge, torch.ones_like(ridge)) if not moments.tokens else ridge
    gram.diagonal().add_(shift)
    targets = weights.to(gram)
    wanted = moments.wanted
    if wanted is None and moments.cross is not None:
        wanted = targets @ moments.cross
    if wanted is not None and moments.tokens:
        wanted = torch.lerp(targets @ moments.gram, wanted, dense_share) + shift * targets
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not int(failed):
            targets = torch.cholesky_solve(wanted.T, factor).T
    return Quadratic(gram, targets.contiguous())


def _flat(x: Tensor) -> Tensor:
    x = x.reshape(-1, x.shape[-1])
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Solved(NamedTuple):
    """Mask with the problem's exact counts, and values that are zero where it is False."""

    mask: Array
    values: Array


class RowMethod(Protocol):
    """Protocol of strategies that prune one matrix.

    Attributes:
        dense_targets: take targets from the dense network's outputs for the same tokens.
        by_group: collect inputs again after each group of matrices with the same input.
        damping: added to the diagonal of A = X X', as a share of its mean.
        work: numbers that it holds at its worst: per pair of inputs, and per weight of the matrix.
        couples: it takes `RowProblem.felt` into account; others get problems without.
    """

    @property
    def dense_targets(self) -> bool: ...
    @property
    def by_group(self) -> bool: ...
    @property
    def damping(self) -> float: ...
    @property
    def work(self) -> tuple[float, float]: ...
    @property
    def couples(self) -> bool: ...

    def solve(self, problem: RowProblem, *, compensate: bool, seed: int) -> Solved:
        """Choose the mask and, when compensating, the values."""
        ...


#: One-shot masks by name, with what `RowMethod.work` says of them.
_ONE_SHOT: dict[str, tuple[Callable[[RowProblem], Start], tuple[float, float]]] = {
    "magnitude": (magnitude, (4.0, 4.0)),
    "wanda": (wanda, (4.0, 5.0)),
    "sparsegpt": (partial(obs_sweep, damping=0.01, block=128), (6.0, 5.0)),
}


@dataclass(frozen=True)
class OneShot:
    """Row method with one pass and no search: the baselines of the literature.

    Args:
        start: "magnitude" keeps the largest |w|; "wanda" the largest |w_i| |X_i| (Sun et al. 2023,
            arXiv 2306.11695, eq. 1); "sparsegpt" is one elimination sweep over the inputs (Frantar
            and Alistarh 2023, arXiv 2301.00774).

    Raises:
        ImpossibleRequestError: another name.

    Example:
        >>> OneShot("sparsegpt").dense_targets
        False
    """

    start: str
    dense_targets = False
    by_group = False
    couples = False
    damping = 0.0

    def __post_init__(self) -> None:
        named("one-shot method", self.start, _ONE_SHOT)

    @property
    def work(self) -> tuple[float, float]:
        """See `RowMethod`."""
        return _ONE_SHOT[self.start][1]

    def solve(self, problem: RowProblem, *, compensate: bool, seed: int) -> Solved:
        return Solved(*_ONE_SHOT[self.start][0](problem))


# Of `RowMethod.work`; counted in the code, and held against measured peaks by the tests.
_SEARCH = (6.0, 15.0)


@dataclass(frozen=True)
class Reconstruct:
    """Local search from a start: swaps within rows, trades between rows and refits.

    Coupled rows (`RowProblem.felt`) get the start's mask and their best values on it, or swaps over
    the whole matrix where values stay: the coupling is worth far more than swaps within rows.

    With `dense_targets`, and inputs collected again by group, the error is that of the outputs
    against the dense network's for the same tokens, so that a layer compensates for the
    pruning of the layers before it.

    Args:
        dense_targets, by_group, damping: see `RowMethod`.
        start: the mask to improve (`solvers.rows.starts`); the default is ALPS's (Meng et al. 2024,
            arXiv 2406.07831).
        max_rounds: largest number of rounds of swaps, trades and refit. Every row ends where no
            swap helps; more rounds trade more between rows, and gain a few tenths of a percent.
        num_threads: threads that share rows on their own; no effect on the answer.
    """

    dense_targets: bool = True
    by_group: bool = True
    damping: float = 0.01
    start: Callable[[RowProblem], Start] = field(default=partial(admm, damping=0.0))
    max_rounds: int = 2
    # Not in repr: a run may be resumed with another number.
    num_threads: int = field(default=1, repr=False, compare=False)
    work = _SEARCH
    couples = True

    def solve(self, problem: RowProblem, *, compensate: bool, seed: int) -> Solved:
        start = self.start(problem)
        if problem.felt is not None:
            values = start.values if compensate else problem.targets
            found = solve_coupled(problem, mask=start.mask, values=values, compensate=compensate)
            return Solved(found.mask, found.values)
        solution = solve_rows(
            problem,
            mask=start.mask,
            values=start.values,
            compensate=compensate,
            max_rounds=self.max_rounds,
            num_threads=self.num_threads,
        )
        return Solved(solution.mask, solution.values)


@dataclass(frozen=True)
class SampledRows:
    """Sampler on every output row as one problem with its exact count, for comparison.

    The sampler chooses the mask as if kept values stayed at their targets (`RowProblem.
    row_as_problem`), never a worse one than the start's; then, when compensating, all kept values
    are refitted on the support. Over a matrix' own count, each row keeps as many as in the start.

    Args:
        sampler: a registered name, or any object with ``sample(bqm, ...) -> SampleSet``.
        sampler_options: options of every call.
        dense_targets, by_group, damping, start: as in `Reconstruct`.

    Raises:
        SolverError: no such sampler or option.
    """

    sampler: Any = "relax"
    sampler_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dense_targets: bool = True
    by_group: bool = True
    damping: float = 0.01
    start: Callable[[RowProblem], Start] = field(default=partial(admm, damping=0.0))
    work = _SEARCH
    couples = False

    def __post_init__(self) -> None:
        self._ask()  # Wrong options are refused before a block's passes.

    def _ask(self) -> Ask:
        return Ask.to(self.sampler, self.sampler_options)

    def solve(self, problem: RowProblem, *, compensate: bool, seed: int) -> Solved:
        ask = self._ask()
        mask = as_host(self.start(problem).mask).astype(bool)
        for row, kept in enumerate(mask):
            if kept.all() or not kept.any():
                continue
            asked = problem.row_as_problem(row, int(kept.sum()) if problem.counts.trades else None)
            key = np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(1)
            found = answer(ask, (asked, (~kept).astype(np.int8), int(key[0])))
            mask[row] = found.sample == 0
        chosen = problem.checked_mask(mask)
        values = problem.targets * chosen
        if compensate:
            values = refit(problem.gram, problem.targets, chosen, values)
        return Solved(chosen, values)


#: Names on the command line.
ROWS: dict[str, RowMethod] = {
    "magnitude": OneShot("magnitude"),
    "wanda": OneShot("wanda"),
    "sparsegpt": OneShot("sparsegpt"),
    "reconstruct": Reconstruct(),
}

"""Starting masks of row problems: magnitude, Wanda, an OBS elimination sweep, and ADMM.

Every start is a pure function of a `RowProblem` and returns a mask with the problem's exact
counts, True where kept; the last two come with values as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from solvers.rows.problem import RowProblem
from solvers.rows.refit import Array, as_like


class Start(NamedTuple):
    """A mask with exact counts and values that are zero where it is False."""

    mask: Array
    values: Array


def magnitude(problem: RowProblem) -> Start:
    """Keep the largest |w0|.

    Example:
        >>> from solvers.rows.counts import Counts
        >>> problem = RowProblem(np.diag([1.0, 4.0]), [[3.0, 2.0]], Counts([1]))
        >>> magnitude(problem).mask.tolist()
        [[True, False]]
    """
    return _original(problem, abs(problem.targets))


def wanda(problem: RowProblem) -> Start:
    """Keep the largest |w0_i| |X_i| = |w0_i| sqrt(A_ii) (Sun et al. 2023, arXiv 2306.11695).

    Example:
        >>> from solvers.rows.counts import Counts
        >>> problem = RowProblem(np.diag([1.0, 4.0]), [[3.0, 2.0]], Counts([1]))
        >>> wanda(problem).mask.tolist()
        [[False, True]]
    """
    return _original(problem, abs(problem.targets) * problem.gram.diagonal() ** 0.5)


def obs_sweep(problem: RowProblem, *, damping: float = 0.01, block: int = 128) -> Start:
    """One sweep of optimal brain surgeon eliminations over the inputs, left to right.

    SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1): inputs are visited in
    order; a weight pruned at input c leaves its error to the inputs after c through the row of
    the inverse Gram matrix in which inputs before c are already eliminated, which is row c of
    its upper Cholesky factor U. A block's weights are chosen together by w_c^2 / U_cc^2.

    Args:
        problem: the rows.
        damping: added to the diagonal of A, as a share of its mean.
        block: inputs chosen together (N:M structures choose run by run).

    Example:
        >>> from solvers.rows.counts import Counts
        >>> problem = RowProblem(np.diag([1.0, 4.0]), [[3.0, 2.0]], Counts([1]))
        >>> obs_sweep(problem).mask.tolist()
        [[False, True]]
    """
    xp = array_namespace(problem.gram)
    targets, inputs = problem.targets, problem.num_inputs
    upper = _inverse_factor(problem.gram, damping)
    values = targets + 0.0
    values[:, problem.gram.diagonal() <= 0] = 0.0
    mask = xp.zeros_like(values) > 0
    run = problem.counts.run(inputs)
    width = run if run < inputs else min(inputs, block)
    block = width * max(1, block // width)
    for first in range(0, inputs, block):
        last = min(first + block, inputs)
        errors = xp.zeros_like(values[:, first:last])
        for start in range(first, last, width):
            stop = min(start + width, last)
            scores = (values[:, start:stop] / upper.diagonal()[start:stop]) ** 2
            mask[:, start:stop] = problem.counts.select(scores, start, inputs)
            for c in range(start, stop):
                error = (values[:, c] / upper[c, c]) * ~mask[:, c]
                values[:, c:last] -= error[:, None] * upper[c, c:last]
                errors[:, c - first] = error
        values[:, last:] -= errors @ upper[first:last, last:]
    return Start(mask, values * mask)


def admm(problem: RowProblem, *, damping: float = 0.01, max_iterations: int = 300) -> Start:
    """The mask of an alternating direction method, as in ALPS (Meng et al. 2024, 2406.07831).

    On inputs (and coupled rows) scaled to unit Gram diagonal, with penalty rho and dual V:

        W <- (A + rho I)^-1 (A W0 - V + rho D)    D <- keep the largest of W + V / rho
        V <- V + rho (W - D)

    Of coupled rows A stands for the Kronecker product of G and A, of which eigenvectors of both
    give the inverse; float32 is exact enough for their masks.

    rho starts at 0.1 and grows every third round by 1.3, 1.2 or 1.1, the faster the more
    the support still changes (at least 10 %, 0.5 %, any of the kept weights); it ends when the
    support rests.

    Args:
        problem: the rows.
        damping: added to the diagonal of A, as a share of its mean.
        max_iterations: rounds at most.

    Example:
        >>> from solvers.rows.counts import Counts
        >>> problem = RowProblem(np.diag([1.0, 4.0]), [[3.0, 2.0]], Counts([1]))
        >>> admm(problem).mask.tolist()
        [[False, True]]
    """
    scaled = _scaled(problem, damping)
    damped = _damped_inverse(scaled.gram, scaled.felt)
    targets, counts = scaled.targets, problem.counts
    sparse, dual = targets, array_namespace(targets).zeros_like(targets)
    mask = last = counts.select(abs(targets))
    kept = max(1, int(mask.sum()))
    rho = 0.1
    for iteration in range(1, max_iterations + 1):
        values = damped(scaled.pull - dual + rho * sparse, rho)
        mask = counts.select(abs(values + dual / rho))
        sparse = (values + dual / rho) * mask
        dual = dual + rho * (values - sparse)
        if iteration % 3 == 0:
            changed = int((mask ^ last).sum())
            last = mask
            if changed == 0:
                break
            rho *= 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1
    return Start(mask, as_like(sparse / scaled.scale, problem.targets))


class _Scaled(NamedTuple):
    """A problem whose Gram matrices have a diagonal of 1; its values are ``scale`` times W."""

    gram: Array
    felt: Array | None
    targets: Array
    pull: Array
    scale: Array


def _scaled(problem: RowProblem, damping: float) -> _Scaled:
    felt = problem.felt
    if felt is None:
        gram, inputs = _unit(problem.gram, damping)
        targets = problem.targets * inputs
        return _Scaled(gram, None, targets, targets @ gram, inputs)
    gram, inputs = _unit(as_like(problem.gram, problem.gram, "float32"), damping)
    felt, rows = _unit(as_like(felt, felt, "float32"), 0.0)
    scale = rows[:, None] * inputs
    targets = as_like(problem.targets, gram) * scale
    return _Scaled(gram, felt, targets, felt @ targets @ gram, scale)


def _unit(moments: Array, damping: float) -> tuple[Array, Array]:
    """Moments scaled to a diagonal of 1, and the roots of the diagonal before (damped)."""
    diagonal = moments.diagonal()
    scale = (diagonal + damping * diagonal.mean() + 1e-30) ** 0.5
    scaled = moments / (scale[:, None] * scale[None, :])
    return scaled + array_namespace(moments).diag(1.0 - scaled.diagonal()), scale


def _original(problem: RowProblem, scores: Array) -> Start:
    mask = problem.counts.select(scores)
    return Start(mask, problem.targets * mask)


def _damped_inverse(gram: Array, felt: Array | None) -> Callable[[Array, float], Array]:
    """(right, rho) -> right (A + rho I)^-1, rho the same for some calls in a row.

    On a host eigenvectors serve every rho. On a device they take as long as hundreds of inverses,
    so that those are cheaper, but for coupled rows.
    """
    if felt is not None:
        return _kronecker_inverse(gram, felt)
    if not is_torch_array(gram):
        eigenvalues, basis = np.linalg.eigh(gram)
        return lambda right, rho: (right @ basis / (eigenvalues + rho)) @ basis.T
    xp = array_namespace(gram)
    inverses: dict[float, Array] = {}

    def times(right: Array, rho: float) -> Array:
        if rho not in inverses:
            inverses.clear()
            inverses[rho] = xp.cholesky_inverse(xp.linalg.cholesky(_shifted(gram, rho)))
        return right @ inverses[rho]

    return times


def _kronecker_inverse(gram: Array, felt: Array) -> Callable[[Array, float], Array]:
    """(right, rho) -> the W of G W A + rho W = right."""
    linalg = array_namespace(gram).linalg
    (columns, basis), (rows, felt_basis) = linalg.eigh(gram), linalg.eigh(felt)
    both = (rows[:, None] * columns).clip(0.0, None)
    return lambda right, rho: felt_basis @ ((felt_basis.T @ right @ basis) / (both + rho)) @ basis.T


def _shifted(gram: Array, shift: float) -> Array:
    shifted = gram.clone()
    shifted.diagonal().add_(shift)
    return shifted


def _inverse_factor(gram: Array, damping: float) -> Array:
    """The upper Cholesky factor U of the damped inverse: (A + damping)^-1 = U' U."""
    xp = array_namespace(gram)
    diagonal = gram.diagonal()
    dead = as_like(diagonal <= 0, gram)
    damped = gram + xp.diag(damping * diagonal.mean() + dead)
    return xp.linalg.cholesky(xp.linalg.inv(damped)).T

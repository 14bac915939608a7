"""Coupled rows: the best values on a support, and swaps of many weights at once.

The objective is 1/2 tr(G E A E') with E = W - W0 (`RowProblem.felt` is G). With F = G E A, its
gradient, pruning a weight w alone changes it by -w F + 1/2 w^2 G_rr A_ii, and restoring it by
w F + 1/2 w^2 G_rr A_ii. Each round makes many such changes, whose interactions are left out: it
counts only where the objective falls, and the next round makes half as many where it does not.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from solvers.errors import InvalidOptionError
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem, RowSolution
from solvers.rows.refit import Array, as_host, as_like, safe_inverse

# A round changes at most this share of the kept weights.
_MOST_CHANGED = 0.02
# Residual, as a share of the energy of all weights pruned, at which values are the best ones.
_CONVERGED = 1e-7


def solve_coupled(
    problem: RowProblem,
    *,
    mask: Array,
    values: Array,
    compensate: bool = True,
    max_rounds: int = 150,
) -> RowSolution:
    """The best values on ``mask``; or, where values stay at w0, swaps until none helps.

    Args:
        problem: coupled rows.
        mask: a start with the problem's exact counts.
        values: where to start from; without ``compensate`` the weights that stay.
        compensate: move the kept values; False holds them.
        max_rounds: rounds of swaps at most.

    Raises:
        InvalidOptionError: the mask does not have the problem's counts, or rows are on their own.

    Example:
        >>> import numpy as np
        >>> felt = np.array([[1.0, 0.9], [0.9, 1.0]])
        >>> problem = RowProblem(np.eye(2), np.ones((2, 2)), Counts(3), felt)
        >>> kept = np.array([[True, False], [True, True]])
        >>> solve_coupled(problem, mask=kept, values=problem.targets).values.round(2).tolist()
        [[1.0, 0.0], [1.0, 1.9]]
    """
    if problem.felt is None:
        raise InvalidOptionError("rows without felt are not coupled: solve_rows solves them")
    mask, values = problem.checked_mask(mask), problem.checked_values(values)
    before = as_host(problem.objectives(values * mask))
    if compensate:
        best, swaps, rounds = refit_coupled(problem, mask, values), 0, 0
    else:
        mask, swaps, rounds = _swapped(problem, mask, values, max_rounds)
        best = values * mask
    after = as_host(problem.objectives(best))
    return RowSolution(mask, best, after, before, swaps, 0, rounds, rounds < max_rounds)


def refit_coupled(
    problem: RowProblem, mask: Array, values: Array, *, max_iterations: int = 100
) -> Array:
    """The values of the least objective on ``mask``, by conjugate gradients from ``values``."""
    gram, felt = problem.gram, as_like(problem.felt, problem.gram)
    inverse = safe_inverse(felt.diagonal())[:, None] * safe_inverse(gram.diagonal()) * mask
    best = values * mask
    stop = _CONVERGED * float(((felt @ problem.targets @ gram) * problem.targets).sum())
    residual = (felt @ (problem.targets - best) @ gram) * mask
    direction = residual * inverse
    power = float((residual * direction).sum())
    for _ in range(max_iterations):
        if not power > stop:
            break
        image = (felt @ direction @ gram) * mask
        step = power / float((direction * image).sum())
        best = best + step * direction
        residual = residual - step * image
        scaled = residual * inverse
        now = float((residual * scaled).sum())
        direction = scaled + (now / power) * direction
        power = now
    return best


def _swapped(
    problem: RowProblem, mask: Array, weights: Array, max_rounds: int
) -> tuple[Array, int, int]:
    """``mask`` after swaps of held ``weights``; how many swaps, in how many rounds."""
    felt, gram = problem.felt, problem.gram
    half = 0.5 * weights**2 * (felt.diagonal()[:, None] * gram.diagonal())
    change = weights * mask - problem.targets
    field = felt @ change @ gram
    least, made = 0.5 * float((field * change).sum()), 0
    most = number = max(1, int(_MOST_CHANGED * int(mask.sum())))
    for round_ in range(max_rounds):
        signed = weights * field
        swapped, swaps = _best_swaps(problem.counts, mask, half, signed, number)
        if not swaps:
            return mask, made, round_
        change = weights * swapped - problem.targets
        trial = felt @ change @ gram
        now = 0.5 * float((trial * change).sum())
        if now < least:
            mask, field, least, made = swapped, trial, now, made + swaps
            number = min(most, number + number // 3 + 1)
        elif swaps == 1:
            return mask, made, round_
        else:
            number = swaps // 2
    return mask, made, max_rounds


def _best_swaps(
    counts: Counts, mask: Array, half: Array, signed: Array, number: int
) -> tuple[Array, int]:
    """``mask`` after at most ``number`` swaps that pay on their own, the best of them."""
    xp = array_namespace(mask)
    run = mask.shape[0] * mask.shape[1] if counts.trades else counts.run(mask.shape[1])
    infinite = xp.full_like(half, float("inf"))
    cost = xp.where(mask, half - signed, infinite).reshape(-1, run)
    gain = xp.where(mask, infinite, half + signed).reshape(-1, run)
    each = min(number, run) if counts.trades else 1
    out, into = (_least(scores, each) for scores in (cost, gain))
    rows = as_like(range(len(cost)), out, "int64")[:, None]
    pays = cost[rows, out] + gain[rows, into]
    flat = pays.reshape(-1)
    chosen = _least(flat[None], min(number, len(flat)))[0]
    chosen = chosen[flat[chosen] < 0]
    place = (rows * run + 0 * out).reshape(-1)[chosen]
    result = (mask | False).reshape(-1)
    result[place + out.reshape(-1)[chosen]] = False
    result[place + into.reshape(-1)[chosen]] = True
    return result.reshape(mask.shape), len(chosen)


def _least(scores: Array, number: int) -> Array:
    """Indices of the ``number`` smallest entries of each row, ascending."""
    if is_torch_array(scores):
        return scores.topk(number, dim=-1, largest=False).indices
    found = np.argpartition(scores, number - 1, axis=-1)[:, :number]
    order = np.take_along_axis(scores, found, -1).argsort(axis=-1, kind="stable")
    return np.take_along_axis(found, order, -1)

"""Improve the masks and values of a `RowProblem`: swaps in every row, trades between rows.

Coupled rows (`RowProblem.felt` is G) are solved together: the objective is 1/2 tr(G E A E') with
E = W - W0. With F = G E A, its gradient, pruning a weight w alone changes it by
-w F + 1/2 w^2 G_rr A_ii, and restoring it by w F + 1/2 w^2 G_rr A_ii. Each round makes many such
changes, whose interactions are left out: it counts only where the objective falls, and the next
round makes half as many where it does not.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from numpy.typing import ArrayLike, NDArray

from solvers.errors import InvalidOptionError
from solvers.host.clock import Deadline, running
from solvers.rows.counts import Counts
from solvers.rows.moves import ExactSearch, HeldSearch, Search, match
from solvers.rows.problem import RowProblem, RowSolution
from solvers.rows.refit import Array, as_host, as_like, refit, safe_inverse
from solvers.sampler import positive_int

# Beyond this many inputs a row's tableau (inputs^2 float64, and inputs^3 to build it) costs more
# than its swaps gain.
EXACT_INPUTS = 1024

# A round changes at most this share of the kept weights.
_MOST_CHANGED = 0.02
# Residual, as a share of the energy of all weights pruned, at which values are the best ones.
_CONVERGED = 1e-6
# Smallest gain of a round of swaps, as a share of the objective.
_ROUNDING = 1e-6


def solve_rows(
    problem: RowProblem,
    *,
    mask: ArrayLike,
    values: ArrayLike | None = None,
    compensate: bool = True,
    exact: bool | None = None,
    max_rounds: int = 200,
    time_limit: float | None = None,
    num_threads: int = 1,
) -> RowSolution:
    """Improve ``mask`` (and values) until no swap in a row and no trade between rows helps.

    Deterministic; the result does not depend on ``num_threads``. Of rows of 20 inputs, refitted,
    the result from ADMM's start is about 2 % above the proven optimum, and the best one from all
    four starts 1 %. (Oscillation beyond the counts reduced the error of layers of 128 x 256
    weights by 0.3 % at most, in up to twice the time, and is not done.)

    Args:
        problem: the rows; torch tensors are solved on their device.
        mask: a start with the problem's exact counts; see `solvers.rows.starts`.
        values: values to start from (default: the targets); refitted first.
        compensate: move the kept values to their best; False holds them at the targets.
        exact: make swaps that account for the refit of all kept values (host only). None:
            where that costs little, on the host up to `EXACT_INPUTS` inputs.
        max_rounds: rounds of swaps, trades and refit at most.
        time_limit: seconds. An interrupt, too, ends with the best so far.
        num_threads: the rows are shared among this many threads.

    Returns:
        A mask with the same exact counts, and an objective no worse than the start's.

    Raises:
        InvalidOptionError: the mask does not have the problem's counts, or an option makes no
            sense, or rows are coupled.

    Example:
        >>> from solvers.rows.counts import Counts
        >>> from solvers.rows.starts import magnitude
        >>> problem = RowProblem(np.diag([1.0, 4.0, 9.0]), [[3.0, 2.0, 1.0]], Counts([2]))
        >>> found = solve_rows(problem, mask=magnitude(problem).mask)
        >>> found.mask.tolist(), found.objective
        ([[True, True, False]], 4.5)
    """
    if problem.felt is not None:
        raise InvalidOptionError("coupled rows are solved together, by solve_coupled")
    max_rounds = positive_int("max_rounds", max_rounds)
    start_mask = problem.checked_mask(mask)
    start = problem.targets if values is None or not compensate else problem.checked_values(values)
    start = start * start_mask
    with running(time_limit) as deadline:
        if compensate:
            start = refit(problem.gram, problem.targets, start_mask, start)
        search = _search(problem, start_mask, start, compensate, exact, num_threads)
        return _improved(problem, start_mask, start, search, compensate, max_rounds, deadline)


def _improved(
    problem: RowProblem,
    start_mask: Array,
    start: Array,
    search: Search,
    compensate: bool,
    max_rounds: int,
    deadline: Deadline,
) -> RowSolution:
    """The start improved by ``search``; the start itself where they differ by rounding alone."""
    swaps = trades = rounds = 0
    rows = np.arange(problem.num_rows)
    while rows.size and rounds < max_rounds and not deadline.passed:
        rounds += 1
        made, rows = search.settle(rows, deadline)
        swaps += made
        # Rows come last, so that every row ends where none of its swaps improves.
        if problem.counts.trades and rounds < max_rounds and not deadline.passed:
            traded = _trade(search, search.threshold)
            trades += traded.size // 2
            rows = np.union1d(rows, traded)
    best = search.values
    if compensate:
        best = refit(problem.gram, problem.targets, search.mask, best)
    before, after = (as_host(problem.objectives(v)) for v in (start, best))
    if not after.sum() <= before.sum():
        return RowSolution(start_mask, start, before, before, 0, 0, rounds, not rows.size)
    return RowSolution(search.mask, best, after, before, swaps, trades, rounds, not rows.size)


def _search(
    problem: RowProblem,
    mask: Array,
    values: Array,
    compensate: bool,
    exact: bool | None,
    num_threads: int,
) -> Search:
    threads = positive_int("num_threads", num_threads)
    on_device = is_torch_array(problem.gram)
    if exact and (on_device or not compensate):
        raise InvalidOptionError(
            "exact swaps refit values on the host: pass numpy arrays and compensate=True"
        )
    if on_device:
        from solvers.rows.device import TorchSearch

        return TorchSearch(problem, mask, values, compensate)
    if exact or (exact is None and compensate and problem.num_inputs <= EXACT_INPUTS):
        return ExactSearch(problem, mask, values, threads)
    return HeldSearch(problem, mask, values, compensate, threads)


def _trade(search: Search, tolerance: float) -> NDArray[np.int64]:
    """Make the trades that pay; returns the rows that took part."""
    marginals = search.marginals()
    givers, takers = match(marginals, tolerance)
    if givers.size:
        search.trade(givers, marginals.prune[givers], takers, marginals.restore[takers])
    return np.union1d(givers, takers)


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
    """The values of the least objective on ``mask``, by conjugate gradients from ``values``.

    In float32, which the weights are kept in.
    """
    gram, felt, targets, best = (
        as_like(array, problem.gram, "float32")
        for array in (problem.gram, problem.felt, problem.targets, values)
    )
    best = best * mask
    inverse = safe_inverse(felt.diagonal())[:, None] * safe_inverse(gram.diagonal()) * mask
    stop = _CONVERGED * float(((felt @ targets @ gram) * targets).sum())
    residual = (felt @ (targets - best) @ gram) * mask
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
    return as_like(best, problem.gram)


def _swapped(
    problem: RowProblem, mask: Array, weights: Array, max_rounds: int
) -> tuple[Array, int, int]:
    """``mask`` after swaps of held ``weights``; how many swaps, in how many rounds.

    In float32: what it cannot tell from rounding is no gain.
    """
    felt, gram, targets, weights = (
        as_like(array, problem.gram, "float32")
        for array in (problem.felt, problem.gram, problem.targets, weights)
    )
    half = 0.5 * weights**2 * (felt.diagonal()[:, None] * gram.diagonal())
    change = weights * mask - targets
    field = felt @ change @ gram
    least, made = 0.5 * float((field * change).sum()), 0
    most = number = max(1, int(_MOST_CHANGED * int(mask.sum())))
    for round_ in range(max_rounds):
        swapped, swaps = _best_swaps(problem.counts, mask, half, weights * field, number)
        if not swaps:
            return mask, made, round_
        change = weights * swapped - targets
        trial = felt @ change @ gram
        now = 0.5 * float((trial * change).sum())
        if now < least * (1.0 - _ROUNDING):
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

"""Row problems that share a matrix: what is refused, what is exact, what is optimal."""

from itertools import combinations

import numpy as np
import pytest
import torch

from solvers.errors import InvalidOptionError, InvalidProblemError
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem
from solvers.rows.refit import nth_smallest, objectives, refit
from solvers.rows.search import solve_rows
from solvers.rows.starts import admm, magnitude, obs_sweep, wanda

STARTS = [magnitude, wanda, obs_sweep, admm]


def layer(rows, inputs, seed=0, samples=None):
    """A Gram matrix of correlated inputs with a decaying spectrum, and Laplace weights."""
    rng = np.random.default_rng(seed)
    samples = samples or 4 * inputs
    mix = rng.normal(size=(inputs, inputs)) / (1 + np.arange(inputs))[:, None] ** 0.5
    inputs_seen = rng.normal(size=(samples, inputs)) @ mix
    return inputs_seen.T @ inputs_seen / samples, rng.laplace(size=(rows, inputs))


def budgets(rows, inputs):
    return [
        Counts([inputs // 3]),
        Counts(np.arange(rows) % (inputs + 1)),
        Counts(rows * inputs // 3),
        Counts.n_of_m(2, 4),
        Counts.n_of_m(1, 4),
    ]


def best_values(gram, target, support):
    values = np.zeros(target.size)
    s = np.array(support, dtype=int)
    values[s] = np.linalg.lstsq(gram[np.ix_(s, s)], gram[s] @ target, rcond=None)[0]
    return values


def row_objective(gram, target, values):
    change = values - target
    return 0.5 * change @ gram @ change


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("which", range(5))
def test_starts_keep_exactly_what_the_budget_says(start, which):
    gram, targets = layer(6, 12)
    budget = budgets(6, 12)[which]
    mask, values = start(RowProblem(gram, targets, budget))
    np.testing.assert_array_equal(budget.of(mask), budget.wanted(6, 12))
    assert not values[~mask].any()


@pytest.mark.parametrize("options", [{}, {"exact": False}, {"compensate": False}])
@pytest.mark.parametrize("which", range(5))
def test_solving_keeps_counts_and_never_worsens(which, options):
    gram, targets = layer(6, 12)
    budget = budgets(6, 12)[which]
    problem = RowProblem(gram, targets, budget)
    solution = solve_rows(problem, mask=magnitude(problem).mask, **options)
    np.testing.assert_array_equal(budget.of(solution.mask), budget.wanted(6, 12))
    assert not solution.values[~solution.mask].any()
    assert solution.objective <= solution.start.sum()
    np.testing.assert_allclose(solution.objectives, problem.objectives(solution.values))
    assert solution.finished


@pytest.mark.parametrize("start", STARTS)
def test_every_run_has_its_own_count_and_may_be_long(start):
    gram, targets = layer(3, 300)
    kept = [[7, 150], [0, 31], [99, 98]]
    for counts in (Counts(kept), Counts.n_of_m(40, 150), Counts.n_of_m(40, 300)):
        problem = RowProblem(gram, targets, counts)
        solution = solve_rows(problem, mask=start(problem).mask, exact=False, max_rounds=2)
        expected = kept if counts.m is None else np.full((3, 300 // counts.m), 40)
        by_run = solution.mask.reshape(3, -1, 300 // len(expected[0])).sum(-1)
        np.testing.assert_array_equal(by_run, expected)


def test_one_count_for_all_runs_takes_no_array_of_counts():
    counts = Counts.n_of_m(2, 4)
    counts.check(1 << 40, 1 << 20)
    assert counts.wanted(1 << 20, 1 << 20).strides == (0, 0)


def test_refit_gives_the_least_squares_values():
    gram, targets = layer(5, 10)
    mask = np.random.default_rng(1).random((5, 10)) < 0.5
    mask[0], mask[1] = False, True
    values = refit(gram, targets, mask, targets * mask)
    for row in range(5):
        expected = best_values(gram, targets[row], np.flatnonzero(mask[row]))
        np.testing.assert_allclose(values[row], expected, atol=1e-5)
    np.testing.assert_allclose(values[1], targets[1], atol=1e-5)


@pytest.mark.parametrize("run", [12, 4])
def test_exact_search_ends_where_no_refitted_swap_helps(run):
    gram, targets = layer(4, 12, seed=3)
    budget = Counts([5]) if run == 12 else Counts.n_of_m(2, 4)
    problem = RowProblem(gram, targets, budget)
    solution = solve_rows(problem, mask=magnitude(problem).mask, exact=True)
    for mask, target, reached in zip(solution.mask, targets, solution.objectives, strict=True):
        kept, pruned = np.flatnonzero(mask), np.flatnonzero(~mask)
        for i in kept:
            for j in pruned[pruned // run == i // run]:
                support = np.append(kept[kept != i], j)
                other = row_objective(gram, target, best_values(gram, target, support))
                assert other >= reached * (1 - 1e-9) - 1e-9


def test_held_search_ends_where_no_single_swap_helps():
    gram, targets = layer(4, 12, seed=4)
    problem = RowProblem(gram, targets, Counts([5]))
    solution = solve_rows(problem, mask=magnitude(problem).mask, exact=False)
    for mask, target, values, reached in zip(
        solution.mask, targets, solution.values, solution.objectives, strict=True
    ):
        for i in np.flatnonzero(mask):
            for j in np.flatnonzero(~mask):
                other = values.copy()
                other[i] = 0.0
                other[j] = -((other - target) @ gram)[j] / gram[j, j]
                assert row_objective(gram, target, other) >= reached * (1 - 1e-6)


def test_no_trade_between_rows_is_left():
    gram, targets = layer(5, 10, seed=5)
    problem = RowProblem(gram, targets * np.arange(1, 6)[:, None], Counts(20))
    solution = solve_rows(problem, mask=Counts([4]).select(abs(targets)), exact=True)
    assert solution.trades > 0
    for giver in range(5):
        for taker in set(range(5)) - {giver}:
            for i in np.flatnonzero(solution.mask[giver]):
                fewer = np.flatnonzero(solution.mask[giver])
                fewer = best_values(gram, problem.targets[giver], fewer[fewer != i])
                for j in np.flatnonzero(~solution.mask[taker]):
                    more = np.append(np.flatnonzero(solution.mask[taker]), j)
                    more = best_values(gram, problem.targets[taker], more)
                    other = row_objective(gram, problem.targets[giver], fewer)
                    other += row_objective(gram, problem.targets[taker], more)
                    now = solution.objectives[[giver, taker]].sum()
                    assert other >= now * (1 - 1e-8)


def test_mask_only_is_the_problem_that_other_samplers_get():
    gram, targets = layer(3, 12, seed=7)
    for budget, kept in ((Counts([5]), None), (Counts.n_of_m(2, 4), None), (Counts(15), 5)):
        problem = RowProblem(gram, targets, budget)
        mask = Counts([5]).select(targets) if kept else budget.select(targets)
        for row in range(3):
            quadratic = problem.row_as_problem(row, kept)
            pruned = (~mask[row]).astype(np.int8)
            assert quadratic.feasible(pruned).all()
            expected = problem.objectives(targets * mask)[row]
            assert quadratic.energy(pruned) == pytest.approx(expected, rel=1e-12)


def test_mask_only_ends_where_swap_descent_would():
    gram, targets = layer(4, 12, seed=8)
    problem = RowProblem(gram, targets, Counts([6]))
    solution = solve_rows(problem, mask=wanda(problem).mask, compensate=False)
    for row in range(4):
        quadratic = problem.row_as_problem(row)
        x = (~solution.mask[row]).astype(np.int8)
        for i in np.flatnonzero(x):
            for j in np.flatnonzero(x == 0):
                other = x.copy()
                other[i], other[j] = 0, 1
                assert quadratic.energy(other) >= quadratic.energy(x) * (1 - 1e-9)


def test_ours_is_at_or_below_the_peers_it_starts_from():
    gram, targets = layer(24, 48, seed=9, samples=200)
    for budget in (Counts([24]), Counts([10]), Counts(24 * 10), Counts.n_of_m(2, 4)):
        problem = RowProblem(gram, targets, budget)
        start = admm(problem)
        ours = solve_rows(problem, mask=start.mask, values=start.values).objective
        alps = objectives(gram, targets, refit(gram, targets, start.mask, start.values)).sum()
        sparsegpt = problem.objectives(obs_sweep(problem).values).sum()
        assert ours < alps
        assert ours < sparsegpt


def test_threads_do_not_change_the_result():
    gram, targets = layer(9, 16, seed=10)
    problem = RowProblem(gram, targets, Counts(50))
    mask = wanda(problem).mask
    for exact in (True, False):
        one, four = (solve_rows(problem, mask=mask, exact=exact, num_threads=n) for n in (1, 4))
        np.testing.assert_array_equal(one.mask, four.mask)
        np.testing.assert_array_equal(one.values, four.values)


@pytest.mark.parametrize("options", [{}, {"exact": False}, {"compensate": False}])
@pytest.mark.parametrize("start", STARTS)
def test_dead_inputs_singular_matrix_and_full_and_empty_rows(start, options):
    gram, targets = layer(3, 8, seed=11, samples=3)  # rank 3
    gram[2] = gram[:, 2] = 0.0
    gram[5] = gram[:, 5] = 0.0
    problem = RowProblem(gram, targets, Counts([0, 8, 3]))
    solution = solve_rows(problem, mask=start(problem).mask, **options)
    assert solution.mask.sum(1).tolist() == [0, 8, 3]
    assert np.isfinite(solution.values).all()
    assert solution.objectives[1] == pytest.approx(0.0, abs=1e-6)
    assert solution.objective <= solution.start.sum()
    if start is not magnitude:
        assert not solution.mask[2, [2, 5]].any()


def test_one_input_and_no_rows():
    single = RowProblem([[2.0]], [[3.0], [1.0]], Counts([1, 0]))
    solution = solve_rows(single, mask=[[True], [False]])
    np.testing.assert_allclose(solution.values, [[3.0], [0.0]])
    np.testing.assert_allclose(solution.objectives, [0.0, 1.0], atol=1e-12)
    none = RowProblem(np.eye(3), np.zeros((0, 3)), Counts([1]))
    assert solve_rows(none, mask=np.zeros((0, 3), bool)).objective == 0.0


def test_all_zero_matrix_is_solved_by_any_mask():
    problem = RowProblem(np.zeros((4, 4)), np.ones((2, 4)), Counts(3))
    for start in STARTS:
        assert solve_rows(problem, mask=start(problem).mask).objective == 0.0


def test_a_time_limit_leaves_a_valid_answer():
    gram, targets = layer(6, 12)
    problem = RowProblem(gram, targets, Counts([4]))
    solution = solve_rows(problem, mask=magnitude(problem).mask, time_limit=0.0)
    assert not solution.finished
    assert (solution.mask.sum(1) == 4).all()


def test_what_is_refused_says_where():
    gram, targets = layer(2, 6)
    broken = gram.copy()
    broken[3, 1] = np.nan
    asymmetric = gram.copy()
    asymmetric[0, 1] += 9.0
    negative = gram - 99.0 * np.eye(6)
    for bad, budget, message in (
        (broken, Counts([1]), r"gram .*\(3, 1\)"),
        (asymmetric, Counts([1]), "not symmetric"),
        (negative, Counts([1]), "negative diagonal"),
        (gram[:5], Counts([1]), "square"),
        (gram, Counts.n_of_m(2, 4), "4 divides, not 6"),
        (gram, Counts([7]), r"row 0 cannot keep 7 .*0\.\.6"),
        (gram, Counts([1, -1]), "row 1 cannot keep -1"),
        (gram, Counts([1, 2, 3]), r"shape \(3,\)"),
        (gram, Counts(13), r"0\.\.12"),
        (gram, Counts([[1], [7]]), r"row 1 cannot keep 7 .*0\.\.6"),
        (gram, Counts(np.ones((2, 4), int)), r"shape \(2, 4\)"),
        (gram, Counts(np.ones((3, 2), int)), r"shape \(3, 2\)"),
    ):
        with pytest.raises(InvalidProblemError, match=message):
            RowProblem(bad, targets, budget)
    with pytest.raises(InvalidProblemError, match="5:3"):
        Counts.n_of_m(5, 3)
    with pytest.raises(InvalidProblemError, match="whole numbers"):
        Counts([1.5])
    with pytest.raises(InvalidProblemError, match=r"\[1 2\]:4"):
        Counts([1, 2], 4)


def test_a_mask_or_option_that_does_not_fit_is_refused():
    gram, targets = layer(2, 6)
    problem = RowProblem(gram, targets, Counts([2]))
    with pytest.raises(InvalidOptionError, match="keeps 6 weights where the problem keeps 2"):
        solve_rows(problem, mask=np.ones((2, 6), bool))
    with pytest.raises(InvalidOptionError, match="shape"):
        solve_rows(problem, mask=np.ones((3, 6), bool))
    mask = magnitude(problem).mask
    with pytest.raises(InvalidOptionError, match="finite"):
        solve_rows(problem, mask=mask, values=np.full((2, 6), np.inf))
    with pytest.raises(InvalidOptionError, match="exact"):
        solve_rows(problem, mask=mask, exact=True, compensate=False)
    with pytest.raises(InvalidOptionError, match="max_rounds"):
        solve_rows(problem, mask=mask, max_rounds=0)
    with pytest.raises(InvalidProblemError, match="kept"):
        problem.row_as_problem(0, kept=2)


def test_a_matrix_that_is_not_semidefinite_is_refused():
    indefinite = np.array([[1.0, 3.0], [3.0, 1.0]])
    problem = RowProblem(indefinite, np.ones((1, 2)), Counts([1]))
    with pytest.raises(InvalidProblemError, match="semidefinite"):
        solve_rows(problem, mask=[[True, False]])


def test_the_start_is_left_alone():
    gram, targets = layer(4, 8)
    problem = RowProblem(gram, targets, Counts([3]))
    mask = magnitude(problem).mask
    before = mask.copy(), targets.copy(), gram.copy()
    solve_rows(problem, mask=mask, values=targets)
    for now, then in zip((mask, targets, gram), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_refitted_rows_come_close_to_the_proven_optimum():
    """Every support enumerated, of inputs as damped as those of a layer."""
    rows = [layer(24, 20, seed=seed, samples=400) for seed in (12, 13, 14)]
    from_admm, reached, least = 0.0, 0.0, 0.0
    for plain, targets in rows:
        gram = plain + 0.01 * plain.diagonal().mean() * np.eye(20)
        for count in (4, 16):
            supports = np.array(list(combinations(range(20), count)))
            inverses = np.linalg.inv(gram[supports[:, :, None], supports[:, None, :]])
            problem = RowProblem(gram, targets, Counts([count]))
            found = [solve_rows(problem, mask=start(problem).mask).objectives for start in STARTS]
            from_admm += found[-1].sum()
            reached += np.min(found, axis=0).sum()
            for target in targets:
                pull = (gram @ target)[supports]
                gained = np.einsum("si,sij,sj->s", pull, inverses, pull)
                least += 0.5 * (target @ gram @ target - gained.max())
    assert least <= reached * (1 + 1e-9)
    assert from_admm <= 1.025 * least
    assert reached <= 1.015 * least


@pytest.mark.parametrize("rows", [1, 3, 63, 64, 200])
@pytest.mark.parametrize("places", [(0,), (4,), (8,), (0, 3, 8), tuple(range(9))])
def test_the_nth_smallest_entry_of_every_row(rows, places):
    array = np.random.default_rng(rows).integers(0, 20, (rows, 9)).astype(np.float64)
    at = np.resize(places, rows)
    expected = np.sort(array, axis=-1)[np.arange(rows), at]
    assert np.array_equal(nth_smallest(array, at), expected)
    there = nth_smallest(torch.as_tensor(array), torch.as_tensor(at))
    assert np.array_equal(there.numpy(), expected)


@pytest.mark.parametrize(
    ("inputs", "rank", "ridge"), [(16, 4, 0.0), (32, 16, 0.0), (32, 16, 1e-10)]
)
@pytest.mark.parametrize("options", [{}, {"exact": False}, {"compensate": False}])
def test_fewer_directions_than_kept_weights_end_with_an_answer(inputs, rank, ridge, options):
    """Rounding promises gains there without end."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        factor = rng.normal(size=(inputs, rank))
        gram = factor @ factor.T + ridge * np.eye(inputs)
        problem = RowProblem(gram, rng.normal(size=(4, inputs)), Counts([inputs // 2]))
        solution = solve_rows(problem, mask=wanda(problem).mask, **options)
        assert (solution.mask.sum(1) == inputs // 2).all()
        assert solution.objective <= solution.start.sum()
        assert solution.swaps <= 50 * inputs * 4

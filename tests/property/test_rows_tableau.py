"""The sweep tableau and the field arithmetic of row problems, against plain least squares."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from solvers.rows.counts import highest
from solvers.rows.exact import marginals_of, regular, tableau_of
from solvers.rows.kernels import pivot, swap_row


def drawn(seed, size):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size + 2, size))
    return rng, factor.T @ factor, rng.normal(size=size)


def least(gram, target, support):
    values = np.zeros(target.size)
    if len(support):
        values[support] = np.linalg.solve(gram[np.ix_(support, support)], gram[support] @ target)
    return 0.5 * (values - target) @ gram @ (values - target), values


def filled(tableau, kept):
    """The entries that mean something: the kept inputs' rows, the diagonal, the last row."""
    return np.concatenate([tableau[:-1][kept, :-1].ravel(), np.diagonal(tableau), tableau[-1]])


seeds, sizes = st.integers(0, 10_000), st.integers(1, 7)


@given(seeds, sizes)
def test_the_tableau_holds_values_residuals_and_objective(seed, size):
    rng, gram, target = drawn(seed, size)
    kept = rng.random(size) < 0.5
    tableau = tableau_of(gram, gram @ target, target @ gram @ target, kept)
    objective, values = least(gram, target, np.flatnonzero(kept))
    np.testing.assert_allclose(0.5 * tableau[-1, -1], objective, atol=1e-7)
    np.testing.assert_allclose(tableau[-1, :-1][kept], values[kept], atol=1e-7)
    residual = gram @ (target - values)
    np.testing.assert_allclose(tableau[-1, :-1][~kept], residual[~kept], atol=1e-7)
    s, n = np.flatnonzero(kept), np.flatnonzero(~kept)
    inverse = np.linalg.inv(gram[np.ix_(s, s)])
    cross = gram[np.ix_(s, n)]
    np.testing.assert_allclose(tableau[np.ix_(s, s)], -inverse, atol=1e-7)
    np.testing.assert_allclose(tableau[np.ix_(s, n)], inverse @ cross, atol=1e-7)
    schur = gram[n, n] - (cross * (inverse @ cross)).sum(0)
    np.testing.assert_allclose(tableau[n, n], schur, atol=1e-7)


@given(seeds, st.integers(2, 7))
def test_pivots_move_between_the_tableaus_of_supports(seed, size):
    rng, gram, target = drawn(seed, size)
    pull, energy = gram @ target, target @ gram @ target
    kept = rng.random(size) < 0.5
    k = int(rng.integers(size))
    before = tableau_of(gram, pull, energy, kept)
    moved, flipped = before.copy(), kept.copy()
    pivot(moved, gram, flipped, k)
    assert np.flatnonzero(flipped != kept).tolist() == [k]
    expected = filled(tableau_of(gram, pull, energy, flipped), flipped)
    found = filled(moved, flipped)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@given(seeds, st.integers(2, 7))
def test_marginals_are_the_best_single_changes(seed, size):
    rng, gram, target = drawn(seed, size)
    kept = rng.random(size) < 0.5
    tableau = tableau_of(gram, gram @ target, target @ gram @ target, kept)
    cost, _, gain, _ = marginals_of(tableau, kept, np.diagonal(gram).copy())
    support = np.flatnonzero(kept)
    now = least(gram, target, support)[0]
    costs = [least(gram, target, support[support != i])[0] - now for i in support]
    gains = [now - least(gram, target, np.append(support, j))[0] for j in np.flatnonzero(~kept)]
    if costs:
        np.testing.assert_allclose(cost, min(costs), atol=1e-6)
    if gains:
        np.testing.assert_allclose(gain, max(gains), atol=1e-6)


@given(seeds, st.integers(2, 7), st.booleans())
def test_the_kernel_keeps_the_field_and_counts_its_gain(seed, size, compensate):
    rng, gram, target = drawn(seed, size)
    kept = rng.random(size) < 0.5
    values = np.where(kept, target, 0.0)
    field = (values - target) @ gram
    before = 0.5 * (values - target) @ gram @ (values - target)
    diagonal = np.diagonal(gram)
    curve = 0.5 / diagonal if compensate else np.zeros(size)
    slope = np.zeros(size) if compensate else target
    cost = np.where(kept, np.inf, 0.5 * slope**2 * diagonal)
    count = kept.sum()
    at = np.zeros(1, np.int64)
    swaps = swap_row(gram, values, field, kept, curve, slope, cost, size, 1e-12, 1000, at)
    after = 0.5 * (values - target) @ gram @ (values - target)
    assert kept.sum() == count
    assert after < before or (swaps == 0 and after == before)
    np.testing.assert_allclose(field, (values - target) @ gram, atol=1e-8)
    assert not values[~kept].any()


@given(seeds, st.integers(1, 5), st.integers(1, 6))
def test_highest_breaks_ties_by_index(seed, rows, size):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (rows, size)).astype(float)
    counts = rng.integers(0, size + 1, rows)
    mask = highest(scores, counts)
    for row in range(rows):
        expected = np.zeros(size, bool)
        expected[np.argsort(-scores[row], kind="stable")[: counts[row]]] = True
        np.testing.assert_array_equal(mask[row], expected)


@given(seeds, sizes)
def test_a_singular_matrix_becomes_regular(seed, size):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(max(1, size // 2), size))
    gram = factor.T @ factor
    gram[0] = gram[:, 0] = 0.0
    assert np.linalg.eigvalsh(regular(gram)).min() > 0

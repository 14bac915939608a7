"""Corrections that two halves of the samples find for each other; the truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from qprune.steps.crossfit import Trial, View, kept_share, modelled
from qprune.steps.formulate import Block
from solvers import Relax

SIZE, DAMPING = 60, 0.05


def block(seed=0):
    """Half of the weights are pruned."""
    random = np.random.default_rng(seed)
    pruned = (np.arange(SIZE) % 2).astype(np.int8)
    values = random.normal(size=SIZE)
    return Block(
        indices=np.arange(SIZE),
        current=values * (pruned == 0),
        keep_value=values,
        pruned=pruned,
        gradient=np.zeros(SIZE),
        groups=np.zeros(SIZE, np.int64),
        counts=np.array([SIZE // 2]),
    )


def view(samples, seed, noise=1.0):
    """A sampled view of a loss with the gradient 0.1 and the curvature 1/2 I."""
    random = np.random.default_rng(seed)
    error = noise * random.normal(size=SIZE) / samples**0.5
    return View(0.1 + error, random.normal(size=(samples, SIZE)) / (2 * samples) ** 0.5)


def trials(samples, noise=1.0, given=None):
    first, second = view(samples, 1, noise), view(samples, 2, noise)
    return [Trial(block(), first, second, given), Trial(block(), second, first, given)]


def true_change(move):
    return 0.1 * move.sum() + 0.25 * move @ move


def test_halves_that_agree_correct_nothing():
    same = view(4000, 1, noise=0.0)
    assert kept_share([Trial(block(), same, same, None)] * 2, DAMPING) == pytest.approx(1.0)


def test_few_samples_promise_less():
    few, many = kept_share(trials(30), DAMPING), kept_share(trials(3000), DAMPING)
    assert few < 0.7 < many <= 1.0


@pytest.mark.parametrize("samples", [40, 150])
def test_the_corrected_promise_is_nearer_the_truth(samples):
    share = kept_share(trials(samples), DAMPING)
    both = [view(samples, seed) for seed in (1, 2)]
    joined = View(
        (both[0].gradient + both[1].gradient) / 2,
        np.concatenate([one.factor for one in both]) / 2**0.5,
    )
    left = joined.left(SIZE, 0.0)
    missed = []
    for used in (1.0, share):
        model, made = modelled(block(), left, used, DAMPING)
        answer = Relax().sample_problem(model, seed=0)
        move = np.where(answer.sample == 0, made.keep_value, 0.0) - made.current
        missed.append(abs(true_change(move) - model.energy(answer.sample)))
    assert missed[1] < 0.5 * missed[0]


def test_samples_as_given_count_where_others_were_made():
    same = view(4000, 1, noise=0.0)
    given = View(1.5 * same.gradient, same.factor * 1.5**0.5)
    assert kept_share([Trial(block(), same, same, given)] * 2, DAMPING) == pytest.approx(1.5)


def test_a_promise_that_the_other_half_denies_is_next_to_nothing():
    wild = view(4000, 1, noise=0.0)
    against = replace(wild, gradient=-9 * wild.gradient)
    found = kept_share([Trial(block(), wild, against, None)] * 2, DAMPING)
    assert found == pytest.approx(0.05)


def test_where_no_change_pays_nothing_is_corrected():
    flat = View(np.zeros(SIZE), np.eye(SIZE))
    assert kept_share([Trial(block(), flat, flat, None)] * 2, DAMPING) == 1.0


def test_the_energy_is_that_of_the_corrected_model():
    left = view(50, 1).left(SIZE, 0.0)
    model, made = modelled(block(), left, 0.5, DAMPING)
    sample = np.roll(made.pruned, 1)
    move = np.where(sample == 0, made.keep_value, 0.0) - made.current
    slope, curved = left.along(move)
    wanted = 0.5 * (slope + 0.5 * curved + 0.5 * DAMPING * move @ move)
    assert model.energy(sample) == pytest.approx(wanted)
    assert model.energy(made.pruned) == pytest.approx(0, abs=1e-12)

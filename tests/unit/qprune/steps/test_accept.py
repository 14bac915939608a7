"""Proposals on trial: the better half next, the last one again at a higher price."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from qprune.steps.accept import ATTEMPTS, Proposal, Trust, Verdict, accept
from qprune.steps.formulate import Block
from solvers import Dense, QuadraticProblem

SWAPPED = np.array([1, 0], dtype=np.int8)
PRESENT = np.array([0, 1], dtype=np.int8)


def proposal(number, gain, extra=0.0):
    """Two weights that can be exchanged for a gain, in nats, and a cost of the user's."""
    # E(x) is 0 now, at (0, 1), and -gain at (1, 0).
    model = QuadraticProblem(np.array([-gain, 0.0]), Dense(np.zeros((2, 2))), counts=1)
    problem = model.with_linear(model.linear + np.array([extra, 0.0])) if extra else model
    block = Block(
        indices=np.array([2 * number, 2 * number + 1]),
        current=np.array([1.0, 0.0]),
        keep_value=np.ones(2),
        pruned=PRESENT,
        gradient=np.zeros(2),
        groups=np.zeros(2, np.int64),
        counts=np.array([1]),
    )
    return Proposal(block, model, problem)


def numbers(proposals):
    return [int(p.block.indices[0]) // 2 for p in proposals]


class Trial:
    """Accepts what ``wins`` says, and remembers everything.

    Args:
        wins: proposals' numbers -> change of the loss.
        sample: what the sampler answers, by attempt.
        at_once: change before kept weights have moved; None = none move.
    """

    exhausted = False

    def __init__(self, wins=lambda tried: 1.0, sample=lambda attempt: SWAPPED, at_once=None):
        self.wins, self.sample, self.at_once = wins, sample, at_once
        self.prices, self.tried, self.undone, self.notes = [], [], [], []

    def solve(self, proposals, price):
        answer = SimpleNamespace(sample=self.sample(len(self.prices)), faults=())
        self.prices.append(price)
        return [replace(p, answer=answer) for p in proposals]

    def judge(self, proposals, present):
        self.tried.append(numbers(proposals))
        settled = self.wins(self.tried[-1])
        return Verdict(settled if self.at_once is None else self.at_once, settled)

    def undo(self, proposals):
        self.undone.append(numbers(proposals))

    def note(self, proposals, accepted, verdict, loss, price):
        self.notes.append((numbers(proposals), accepted, verdict.settled, loss, price))


def test_of_several_the_better_half_is_tried_next():
    trial = Trial(lambda tried: -0.5 if tried == [2] else 0.25)
    gains = [1.0, 3.0, 4.0, 2.0]
    trust, taken = accept(trial, [proposal(n, g) for n, g in enumerate(gains)], Trust(), 5.0)
    assert trial.tried == [[2, 1, 3, 0], [2, 1], [2]]
    assert trial.undone == [[2, 1, 3, 0], [2, 1]]
    assert numbers(taken) == [2]
    assert [note[1:4] for note in trial.notes] == [
        (False, 0.25, 5.0),
        (False, 0.25, 5.0),
        (True, -0.5, 4.5),
    ]
    # Halving asks for no new answers.
    assert trial.prices == [0.0]
    # -0.5 of -4 promised: less than a quarter.
    assert trust.price == pytest.approx(0.1 * 4.0 / 2)


def test_a_refused_one_is_solved_again_at_a_higher_price_four_times_at_most():
    trial = Trial()
    trust, taken = accept(trial, [proposal(0, 8.0)], Trust(), 5.0)
    assert taken == []
    assert ATTEMPTS == len(trial.tried) == len(trial.undone) == 4
    # A tenth of the promised gain for each of two decisions, then four times as much.
    first = 0.1 * 8.0 / 2
    assert trial.prices == pytest.approx([0.0, first, 4 * first, 16 * first])
    assert trust.price == pytest.approx(64 * first)
    assert [note[-1] for note in trial.notes] == pytest.approx(trial.prices)


def test_halving_counts_as_an_attempt():
    trial = Trial()
    accept(trial, [proposal(n, 1.0 + n) for n in range(9)], Trust(), 5.0)
    assert [len(tried) for tried in trial.tried] == [9, 4, 2, 1]
    assert trial.prices == [0.0]


def test_an_answer_at_a_higher_price_that_changes_nothing_ends_it():
    trial = Trial(sample=lambda attempt: PRESENT if attempt else SWAPPED)
    trust, taken = accept(trial, [proposal(0, 8.0)], Trust(), 5.0)
    assert (taken, trial.tried) == ([], [[0]])
    assert trust.price == pytest.approx(0.4)


def test_where_no_decision_changes_the_price_falls():
    trial = Trial(sample=lambda attempt: PRESENT)
    trust, taken = accept(trial, [proposal(0, 8.0)], Trust(price=1.0), 5.0)
    assert (taken, trial.tried) == ([], [])
    assert trust.price == 0.25
    assert trial.notes == [([0], False, 0.0, 5.0, 1.0)]


@pytest.mark.parametrize(("real", "price"), [(-3.5, 0.25), (-2.0, 1.0), (-0.5, 4.0)])
def test_the_price_follows_what_came_of_the_promise(real, price):
    """Of 4 nats promised: nearly all, half, next to nothing."""
    trial = Trial(lambda tried: real)
    trust, taken = accept(trial, [proposal(0, 4.0)], Trust(price=1.0), 5.0)
    assert numbers(taken) == [0]
    assert trust.price == price


@pytest.mark.parametrize(
    ("settled", "at_once", "accepted"), [(-0.5, 1.0, True), (0.5, -4.0, False)]
)
def test_what_is_left_once_kept_weights_have_moved_decides(settled, at_once, accepted):
    trial = Trial(lambda tried: settled, at_once=at_once)
    trial.exhausted = True
    trust, taken = accept(trial, [proposal(0, 4.0)], Trust(), 5.0)
    assert bool(taken) is accepted
    # The price follows the model's own promise, of the change at once.
    if accepted:
        assert trust.price == pytest.approx(0.1 * 4.0 / 2)


@pytest.mark.parametrize(("extra", "accepted"), [(0.4, True), (0.6, False)])
def test_terms_of_the_user_count_with_the_loss(extra, accepted):
    trial = Trial(lambda tried: -0.5)
    trial.exhausted = True
    _, taken = accept(trial, [proposal(0, 8.0, extra)], Trust(), 5.0)
    assert bool(taken) is accepted


def test_out_of_time_nothing_more_is_tried():
    trial = Trial()
    trial.exhausted = True
    trust, taken = accept(trial, [proposal(n, 1.0) for n in range(4)], Trust(price=1.0), 5.0)
    assert (taken, len(trial.tried), len(trial.undone)) == ([], 1, 1)
    assert trust.price == 1.0

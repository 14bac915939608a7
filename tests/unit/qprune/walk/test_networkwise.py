"""How a round puts its parts together, on an expansion of a dozen weights made by hand."""

import itertools
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_networks import layer
from small_runs import INPUTS, LOSS, run_of
from torch import nn

import qprune
from qprune.objective.curvature import Expansion
from qprune.steps.accept import Proposal
from qprune.steps.formulate import Block
from qprune.walk.networkwise import carried_out
from qprune.walk.state import State
from solvers import Dense

SIZE = 12


@dataclass(frozen=True, eq=False)
class Matrix:
    """A curvature that is written out."""

    matrix: torch.Tensor

    def diagonal(self):
        return self.matrix.diagonal()

    def blocks(self, chosen):
        return [Dense(self.matrix[i][:, i].double().numpy()) for i in chosen]


@dataclass(frozen=True, eq=False)
class Handmade:
    """The same expansion wherever the weights are."""

    gradient: torch.Tensor
    matrix: torch.Tensor

    def expand(self, objective, generator):
        curvature = Matrix(self.matrix)
        return Expansion(1.0, self.gradient, self.matrix.diagonal(), curvature)


@dataclass(frozen=True, eq=False)
class Chosen:
    """A selector whose blocks a test chooses; it notes which weights rest."""

    blocks_of: object
    resting: list = field(default_factory=list)

    def blocks(self, offer, block_size, num_blocks):
        self.resting.append(offer.resting.clone())
        return self.blocks_of(offer, len(self.resting) - 1)


def handmade(seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(20, SIZE, generator=generator)
    return Handmade(torch.randn(SIZE, generator=generator), root.T @ root / 20)


def pair(offer):
    """One kept and one pruned weight, the first of each."""
    return torch.stack([offer.mask.int().argmax(), (~offer.mask).int().argmax()]).sort().values


def pruned(method, **options):
    options = {"compensate": False, "augment": None, "loss": LOSS, "sampler": "exact"} | options
    return qprune.prune(layer(), INPUTS, sparsity=0.5, method=method, **options)


def test_the_ridge_is_in_the_problem_that_the_sampler_sees():
    curvature, asked, damping = handmade(), [], 0.7
    everything = torch.arange(SIZE)
    method = qprune.Networkwise(
        start="magnitude",
        curvature=curvature,
        select=Chosen(lambda offer, number: [everything]),
        stages=1,
        rounds=1,
        final_rounds=1,
        damping=damping,
    )
    pruned(method, observe_blocks=asked.append)
    solved = asked[0]
    values = layer().weight.detach().flatten().double().numpy()
    order = np.argsort(np.abs(values))
    present = np.zeros(SIZE, np.int8)
    present[order[: SIZE // 2]] = 1
    assert np.array_equal(solved.present, present)
    H, g = curvature.matrix.double().numpy(), curvature.gradient.double().numpy()
    ridge = damping * H.diagonal().mean()
    now = values * (present == 0)
    for x in itertools.islice(itertools.product((0, 1), repeat=SIZE), 0, None, 37):
        move = values * (1 - np.array(x)) - now
        wanted = g @ move + 0.5 * move @ H @ move + 0.5 * ridge * move @ move
        assert solved.problem.energy(np.array(x)) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_offered_weights_that_stay_rest_for_two_rounds():
    still = Handmade(torch.zeros(SIZE), torch.eye(SIZE))  # Every change costs something.
    select = Chosen(lambda offer, number: [pair(offer)] if number == 0 else [])
    method = qprune.Networkwise(
        start="magnitude", curvature=still, select=select, stages=1, final_rounds=5
    )
    report = pruned(method).report
    assert not any(step.flips for step in report.steps[1:])
    assert [int(resting.sum()) for resting in select.resting] == [0, 2, 2, 0, 0]
    first, second = torch.nonzero(select.resting[1])[:, 0].tolist()
    assert set(report.steps[1].blocks[0].layers.values()) == {2}
    assert torch.equal(select.resting[1], select.resting[2])
    assert first != second


def test_rests_go_on_from_one_stage_to_the_next():
    still = Handmade(torch.zeros(SIZE), torch.eye(SIZE))
    select = Chosen(lambda offer, number: [pair(offer)] if number == 1 else [])
    method = qprune.Networkwise(
        start="magnitude", curvature=still, select=select, stages=2, rounds=2, final_rounds=3
    )
    pruned(method)
    # Round 1 of stage 0, a first pass, which counts as one, and rounds 0 to 2 of stage 1.
    assert [int(resting.sum()) for resting in select.resting] == [0, 0, 2, 0, 0]


def test_weights_that_were_changed_do_not_rest():
    run = run_of(layer())
    state = State.dense(run.weights).full(run.weights)
    mask = torch.arange(SIZE) % 2 == 0
    state = replace(state, mask=mask, values=state.values * mask)
    state = replace(state, resting=torch.full((SIZE,), 9, dtype=torch.int32))
    indices = np.array([2, 3, 6, 7])  # 2 and 6 are kept, 3 and 7 are pruned.
    block = Block(
        indices=indices,
        current=state.values[indices].double().numpy(),
        keep_value=np.array([0.1, 0.2, 0.3, 0.4]),
        pruned=np.array([0, 1, 0, 1], np.int8),
        gradient=np.zeros(4),
        groups=np.zeros(4, np.int64),
        counts=np.array([2]),
    )
    answer = SimpleNamespace(sample=np.array([1, 0, 0, 1], np.int8), faults=())
    done = carried_out(state, [Proposal(block, None, None, answer)])
    assert torch.nonzero(done.resting == 0)[:, 0].tolist() == [2, 3]
    assert done.mask[indices].tolist() == [False, True, True, False]
    torch.testing.assert_close(done.values[indices], torch.tensor([0.0, 0.2, 0.3, 0.0]))
    others = np.setdiff1d(np.arange(SIZE), indices)
    assert torch.equal(done.values[others], state.values[others])
    assert torch.equal(state.mask, mask), "the state before is still there to go back to"


def test_stages_are_cubic():
    torch.manual_seed(0)
    model, inputs = nn.Linear(20, 10, bias=False), torch.randn(50, 20)
    method = qprune.Networkwise(start="magnitude", stages=4, rounds=0, final_rounds=0)
    report = qprune.prune(
        model, inputs, sparsity=0.8, method=method, compensate=False, loss=LOSS, augment=None
    ).report
    # 1 - (1 - (s + 1) / 4)^3 of 160: 92.5, 140, 157.5, 160, halves to the even number.
    assert [round(step.sparsity * 200) for step in report.steps] == [92, 140, 158, 160]
    assert [step.flips for step in report.steps] == [92, 48, 18, 2]


@pytest.mark.parametrize("questions", range(9))
def test_a_first_pass_that_is_late_goes_straight_to_the_final_counts(questions):
    """Whenever the stop comes, also while a stage begins."""
    steps, done, asked = [], [], itertools.count()

    def stop():
        if next(asked) < questions:
            return False
        done.append(len(steps))
        return True

    limits = qprune.Limits(should_stop=stop)
    method = qprune.Networkwise(start="magnitude", stages=9, rounds=0, final_rounds=0)
    report = pruned(method, limits=limits, observe=steps.append).report
    assert report.stopped == "interrupted"
    assert len(report.steps) < 9
    assert report.achieved_sparsity == 0.5
    assert {step.sparsity for step in report.steps[done[0] :]} == {0.5}


def test_settling_ends_where_nothing_moves():
    """Calls of a compensation at the end go on while they help."""

    class Twice(qprune.Compensation):
        def moves(self, objective, kept, generator):
            calls.append(1)
            if len(calls) == 2:  # One of the two ways leads down.
                yield 1e-3 * kept
                yield -1e-3 * kept
            else:
                yield 100.0 * kept

    method = qprune.Networkwise(start="magnitude", stages=1, rounds=0, final_rounds=0)
    calls = []
    report = pruned(method, compensate=Twice(iterations=(1,), final_steps=9)).report
    # One after the first pass, one that helps, one that does not; six are left out.
    assert [(step.kind, step.accepted) for step in report.steps] == [
        ("start", True),
        ("compensate", False),
        ("compensate", True),
        ("compensate", False),
    ]
    assert len(calls) == 3


@pytest.mark.parametrize("threads", [None, 2])
def test_blocks_of_one_round_have_seeds_of_their_own(threads):
    asked = []
    method = qprune.Networkwise(
        start="magnitude",
        curvature=handmade(),
        stages=1,
        final_rounds=2,
        num_blocks=2,
        block_size=4,
    )
    pruned(method, observe_blocks=asked.append, threads=threads)
    rounds = {}
    for solved in asked:
        rounds.setdefault((solved.round, solved.block), set()).add(solved.seed)
    seeds = [seed for seeds in rounds.values() for seed in seeds]
    assert all(len(seeds) == 1 for seeds in rounds.values())
    assert len(set(seeds)) == len(seeds) >= 4

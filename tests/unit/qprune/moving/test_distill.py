"""Distillation: one schedule over the stages, its optimiser, and BatchNorm's statistics."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from qprune.cost import FRUGAL, THOROUGH, effort_for
from qprune.distributed.workers import Workers, limited_threads
from qprune.moving.adam import Adam
from qprune.moving.distill import Distillation, _takes_channels_last
from qprune.network.statistics import statistics_of, take_again
from qprune.network.weights import find_weights
from qprune.objective.losses import DenseOutputs
from qprune.objective.samples import Objective
from qprune.objective.trace.recorder import Samples, outputs_of


class Pooled(nn.Module):
    """Two convolutions with BatchNorm; the features are flattened by view or by flatten."""

    def __init__(self, view=False):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.second, self.last = nn.Conv2d(6, 4, 3), nn.Linear(4 * 4, 5)
        self.view = view

    def forward(self, x):
        x = self.second(torch.relu(self.norm(self.first(x))))
        return self.last(x.view(len(x), -1) if self.view else x.flatten(1))


def objective(model, number=64):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(number, 3, 6, 6, generator=generator)
    samples = Samples(inputs, outputs_of(model, inputs, 32))
    return Objective(model, find_weights(model), samples, DenseOutputs(), 64, number)


def pruned(view=False):
    torch.manual_seed(0)
    model = Pooled(view).eval()
    take_again(model, model, [torch.randn(200, 3, 6, 6)])
    with torch.no_grad():
        model.last.weight.mul_(10)
    made = objective(model)
    values = made.weights.read()
    kept = values.abs() > values.abs().quantile(0.6)
    made.weights.write(values * kept)
    return made, kept


def test_the_rate_falls_to_a_share_between_stages_and_to_zero_after_the_last():
    whole = Distillation(steps=20, samples_per_step=8, candidates=3, between=0.25)
    early, last = whole.at(0, 4), whole.at(3, 4)
    assert (early.steps, early.candidates, last.steps, last.candidates) == (20, 1, 120, 3)
    assert early._share(0, 20) == early._share(1, 20) == 1.0
    assert 0.25 < early._share(19, 20) < 0.27
    assert last._share(0, 120) == pytest.approx(1 / 6)
    assert last._share(6, 120) == 1.0
    assert last._share(119, 120) < 0.001
    assert whole.at(0, 1) is whole


def test_the_defaults_are_counted_in_operations():
    assert effort_for(32_000) == THOROUGH
    large, larger = effort_for(41_000_000), effort_for(400_000_000)
    assert large.samples_per_move == FRUGAL.samples_per_move == 64
    assert 90 < large.moves < 110
    assert larger.moves == 16
    assert effort_for(2_000_000_000).samples_per_move == 8
    made = Distillation(samples_per_step=3).completed(large)
    assert (made.steps, made.samples_per_step) == (large.moves, 3)


def test_without_convolutions_the_optimiser_is_adam():
    model = nn.Linear(5, 4, bias=False)
    layers, values = find_weights(model), torch.randn(20)
    kept = torch.arange(20) % 3 > 0
    values = values * kept
    ours = Adam.at(values, layers, kept, (), 0.01)
    theirs = values.clone().requires_grad_()
    rate = 0.01 * float((values.square().sum() / kept.sum()).sqrt())
    adam = torch.optim.Adam([theirs], lr=rate, betas=ours.decay)
    for step in range(30):
        gradient = torch.sin(torch.arange(20.0) * (step + 1))
        ours.step(gradient, 1.0)
        theirs.grad = gradient * kept
        adam.step()
    torch.testing.assert_close(ours.values, theirs.detach())
    assert not ours.values[~kept].any()


def test_along_its_own_axes_a_turned_problem_is_solved_as_the_straight_one():
    """Gradients of a badly scaled quadratic in turned coordinates: SOAP sees through the turn."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(18, 18, generator=generator))[0]
    scales = torch.logspace(0, -3, 18)
    left = {}
    for name in ("soap", "adam"):
        model = nn.Conv2d(2, 8, 3, bias=False)
        layers = find_weights(model)
        values = torch.randn(8, 18, generator=torch.Generator().manual_seed(1)).flatten()
        made = Adam.at(values, layers, torch.ones(144, dtype=torch.bool), (), 0.05)
        made = made if name == "soap" else replace(made, axes=[])
        for _ in range(150):
            made.step(((made.values.view(8, 18) @ turn * scales) @ turn.T).flatten(), 1.0)
        left[name] = float(((made.values.view(8, 18) @ turn).square() * scales).sum())
    assert left["soap"] < 0.5 * left["adam"]


def test_statistics_belong_to_the_candidate_and_improve_it():
    made, kept = pruned()
    before, dense = made.value(), statistics_of(made.model)
    strategy = Distillation(80, 32, candidates=2, by_batch=True)
    values, losses, known = made.weights.read(), [], []
    for move in strategy.moves(made, kept, torch.Generator().manual_seed(0)):
        known.append(statistics_of(made.model))
        made.weights.write(values + move)
        losses.append(made.value())
    assert losses[-1] < 0.5 * before
    assert not torch.equal(known[0], dense)
    assert not torch.equal(known[0], known[1])
    assert not made.model.norm.training


def test_it_follows_the_batches_only_where_their_statistics_are_the_networks_own():
    made, _ = pruned()
    model, inputs = made.model, made.samples.inputs
    layers, known = made.weights, statistics_of(model)
    assert Distillation().suited(model, layers, inputs).by_batch
    assert torch.equal(statistics_of(model), known)
    assert not Distillation().suited(model, layers, 5 + 3 * inputs).by_batch
    assert not Distillation(by_batch=False).suited(model, layers, inputs).by_batch
    assert Distillation(by_batch=True).suited(model, layers, 5 + 3 * inputs).by_batch


def test_few_samples_leave_the_statistics_alone():
    made, kept = pruned()
    dense = statistics_of(made.model)
    strategy = Distillation(3, 8, candidates=1, by_batch=True)
    assert len(list(strategy.moves(made, kept, torch.Generator().manual_seed(0)))) == 1
    assert torch.equal(statistics_of(made.model), dense)


def test_threads_give_the_same_bytes():
    found = []
    for ranks in (None, Workers(3)):
        made, kept = pruned()
        if ranks is not None:
            made = replace(made, samples=replace(made.samples, ranks=ranks))
        strategy = Distillation(6, 64, candidates=1, by_batch=True)
        with limited_threads(1):
            moves = list(strategy.moves(made, kept, torch.Generator().manual_seed(0)))
        found.append((moves[-1], statistics_of(made.model)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_channels_last_only_where_the_network_takes_it():
    assert _takes_channels_last(objective(Pooled().eval()))
    assert not _takes_channels_last(objective(Pooled(view=True).eval()))
    made, kept = pruned(view=True)
    strategy = Distillation(steps=2, samples_per_step=32, candidates=1)
    assert len(list(strategy.moves(made, kept, torch.Generator().manual_seed(0)))) == 1


def test_half_precision_passes_end_near_those_in_full():
    ends = []
    for precision in (None, torch.bfloat16):
        made, kept = pruned()
        strategy = Distillation(steps=20, samples_per_step=32, candidates=1, precision=precision)
        move = list(strategy.moves(made, kept, torch.Generator().manual_seed(0)))[-1]
        assert move.dtype == torch.float32
        ends.append(made.value())
    assert ends[1] == pytest.approx(ends[0], rel=0.2)


def test_what_is_drawn_knows_how_many_samples_were_given():
    made = replace(objective(Pooled().eval()), given=16)
    drawn = made.drawn(40, torch.Generator().manual_seed(0))
    number = len(drawn.given_inputs)
    assert 0 < number < 16
    held = {tuple(sample.flatten().tolist()) for sample in made.given_inputs}
    inside = [tuple(sample.flatten().tolist()) in held for sample in drawn.samples.inputs]
    assert inside == [True] * number + [False] * (40 - number)

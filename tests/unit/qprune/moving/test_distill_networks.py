"""Distillation of networks of every kind: what moves, what stays, and what is refused."""

import pytest
import torch
from torch import nn

import qprune
from qprune.errors import ImpossibleRequestError, NonFiniteError
from qprune.moving.adam import Adam
from qprune.moving.compensate import Compensation
from qprune.moving.distill import Distillation
from qprune.network.statistics import free_affine_of, norms_of, statistics_of, take_again
from qprune.network.weights import find_weights
from qprune.objective.losses import DenseOutputs, PerSample


def body(norm):
    return nn.Sequential(nn.Conv2d(2, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5))


def lines(norm):
    return nn.Sequential(nn.Conv1d(2, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6, 5))


class Halved(nn.BatchNorm2d):
    """A scale without a shift."""

    def __init__(self, size):
        super().__init__(size)
        self.bias = None


NORMS = {
    "BatchNorm2d": lambda: body(nn.BatchNorm2d(6)),
    "without scales": lambda: body(nn.BatchNorm2d(6, affine=False)),
    "a scale alone": lambda: body(Halved(6)),
    "mean over all batches": lambda: body(nn.BatchNorm2d(6, momentum=None)),
    "across processes": lambda: body(nn.SyncBatchNorm(6)),
    "BatchNorm1d": lambda: lines(nn.BatchNorm1d(6)),
    "BatchNorm3d": lambda: nn.Sequential(
        nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.Flatten(), nn.Linear(6 * 8, 5)
    ),
}
OTHERS = {
    "none": lambda: body(nn.Identity()),
    "by group": lambda: body(nn.GroupNorm(2, 6)),
    "by layer": lambda: body(nn.LayerNorm([6, 4, 4])),
    "by image": lambda: body(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
    "tokens": lambda: nn.Sequential(
        nn.Embedding(11, 8), nn.Flatten(), nn.Linear(40, 16), nn.Tanh(), nn.Linear(16, 5)
    ),
    "tones": lambda: nn.Sequential(nn.Linear(50, 16), nn.Tanh(), nn.Linear(16, 5)),
}
SHAPES = {"BatchNorm1d": (2, 8), "BatchNorm3d": (2, 4, 4, 4), "tones": (50,)}
METHOD = qprune.Networkwise(stages=2, rounds=0, final_rounds=0)


def inputs_of(kind, number=60, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    if kind == "tokens":
        return torch.randint(11, (number, 5), generator=generator)
    return torch.randn(number, *SHAPES.get(kind, (2, 6, 6)), generator=generator).to(dtype)


def network(kind, inputs):
    torch.manual_seed(0)
    model = (NORMS | OTHERS)[kind]().to(inputs.dtype if inputs.is_floating_point() else None)
    take_again(model.eval(), model, [inputs])
    return model


def pruned(model, inputs, **options):
    moves = options.pop("compensate", Distillation(12, 32, candidates=2, by_batch=True))
    options = {"sparsity": 0.5, "method": METHOD, "augment": None} | options
    return qprune.prune(model, inputs, compensate=moves, **options)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, model):
    return {n for n, tensor in model.state_dict().items() if not torch.equal(before[n], tensor)}


@pytest.mark.parametrize("kind", NORMS)
def test_statistics_scales_and_shifts_follow_and_nothing_else(kind):
    inputs = inputs_of(kind)
    model = network(kind, inputs)
    before, momentum = state_of(model), model[1].momentum
    found = pruned(model, inputs)
    assert found.report.achieved_sparsity == 0.5
    follow = {"1.running_mean", "1.running_var"}
    if kind not in ("without scales", "a scale alone"):
        follow |= {"1.weight", "1.bias"}
    last = max(before)[0]
    assert changed(before, model) == follow | {"0.weight", f"{last}.weight"}
    assert model[1].momentum == momentum


@pytest.mark.parametrize("kind", OTHERS)
def test_without_running_statistics_weights_alone_move(kind):
    inputs = inputs_of(kind)
    model = network(kind, inputs)
    before, weights = state_of(model), {w.parameter_name for w in find_weights(model)}
    assert pruned(model, inputs).report.achieved_sparsity == 0.5
    assert changed(before, model) == weights


def test_norms_that_keep_no_statistics_are_none():
    plain = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.InstanceNorm1d(3))
    broken = nn.BatchNorm1d(3)
    broken.running_mean = None
    assert norms_of(nn.Sequential(plain, broken, nn.GroupNorm(1, 3))) == []
    assert statistics_of(plain) is None


def test_where_processes_share_statistics_each_leaves_them_alone(monkeypatch):
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.BatchNorm2d(3))
    assert norms_of(model) == [*model]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert norms_of(model) == [model[1]]


def test_frozen_scales_and_shifts_stay():
    inputs = inputs_of("BatchNorm2d")
    model = network("BatchNorm2d", inputs)
    model[1].bias.requires_grad_(False)
    before = state_of(model)
    pruned(model, inputs)
    assert not changed(before, model) & {"1.weight", "1.bias"}
    assert "1.running_mean" in changed(before, model)
    assert free_affine_of(model) == []
    # A network that is loaded to be looked at requires no gradients at all.
    assert len(free_affine_of(model.requires_grad_(False))) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_numbers(dtype):
    inputs = inputs_of("BatchNorm2d", dtype=dtype)
    model = network("BatchNorm2d", inputs)
    before = state_of(model)
    found = pruned(model, inputs)
    assert found.report.achieved_sparsity == 0.5
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype, torch.int64}
    assert any(step.accepted for step in found.report.steps if step.kind == "compensate")
    assert {"0.weight", "1.weight", "1.running_var"} < changed(before, model)


@pytest.mark.parametrize("number", [3, 5, 17])
def test_few_samples_decide_nothing_about_statistics(number):
    inputs = inputs_of("BatchNorm1d", number)
    model = network("BatchNorm1d", inputs_of("BatchNorm1d"))
    before = state_of(model)
    moves = Distillation(6, 1, candidates=1)
    assert moves.suited(model, find_weights(model), inputs[:1]).by_batch is False
    assert pruned(model, inputs, compensate=moves).report.achieved_sparsity == 0.5
    assert changed(before, model) <= {"0.weight", "4.weight"}


def test_threads_give_the_same_bytes_of_a_whole_run():
    outcomes = []
    for threads in (1, 2):
        inputs = inputs_of("BatchNorm2d", 200)
        model = network("BatchNorm2d", inputs)
        pruned(model, inputs, threads=threads, augment="auto")
        outcomes.append(state_of(model))
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


@pytest.mark.parametrize("calls", [3, 9, 15, 25])
def test_a_loss_that_breaks_in_the_middle_leaves_everything_as_it_was(calls):
    inputs, count = inputs_of("BatchNorm2d"), iter(range(calls))

    def function(outputs, targets):
        broken = next(count, None) is None
        return (outputs - targets).square().sum(1) * (torch.nan if broken else 1.0)

    model = network("BatchNorm2d", inputs)
    before, rates = state_of(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        pruned(model, inputs, loss=PerSample(function, needs_labels=False))
    assert changed(before, model) == set()
    assert [p.requires_grad for p in model.parameters()] == rates


def test_gradients_that_overflow_move_nothing():
    layers = find_weights(nn.Conv2d(2, 2, 3))
    made = Adam.at(torch.ones(36), layers, torch.ones(36, dtype=torch.bool), (), 0.1)
    for gradient in (torch.full((36,), 1e30), torch.full((36,), torch.nan)):
        made.step(gradient, 1.0)
    assert torch.isfinite(made.values).all()


class Lacking:
    """A compensation with the parts that those of earlier versions have."""

    final_steps, at_end, num_samples = 0, False, None

    def completed(self, effort):
        return self

    suited = cost = probe = moves = completed


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Lacking(), "Lacking is none: it has no at"),
        (Distillation, "Distillation is none: it is a class; pass an object of it"),
        ("distillation", "str is none: it has no final_steps"),
    ],
)
def test_what_is_no_compensation_is_refused_in_one_line(given, reason):
    model = network("tones", inputs_of("tones"))
    before = state_of(model)
    with pytest.raises(ImpossibleRequestError, match=reason) as refused:
        pruned(model, inputs_of("tones"), compensate=given)
    assert "\n" not in str(refused.value)
    assert changed(before, model) == set()


class OwnMoves(Compensation):
    """A compensation of the user's own: towards zero."""

    def suited(self, model, layers, inputs):
        return self

    def moves(self, objective, kept, generator):
        yield -0.01 * objective.weights.read()


def test_a_compensation_of_ones_own_is_called_once_a_stage():
    inputs = inputs_of("BatchNorm2d")
    model = network("BatchNorm2d", inputs)
    steps = pruned(model, inputs, compensate=OwnMoves(final_steps=0)).report.steps
    assert [step.kind for step in steps] == ["start", "compensate"] * 2


@pytest.mark.parametrize(
    "options",
    [{"end": 1.5}, {"between": -0.1}, {"warmup": float("nan")}, {"precision": torch.float32}],
)
def test_shares_and_types_that_make_no_sense_are_refused(options):
    with pytest.raises(ImpossibleRequestError, match=next(iter(options))):
        Distillation(**options)


def test_final_calls_are_of_the_length_that_is_asked():
    inputs, told = inputs_of("tones"), []
    model = network("tones", inputs)
    moves = Distillation(
        4, 32, final_steps=1, candidates=1, observe=lambda done, number: told.append(number)
    )
    pruned(model, inputs, compensate=moves, loss=DenseOutputs())
    assert sorted(set(told)) == [4, 12]
    assert told == [4] * 4 + [12] * 12 + [4] * 4

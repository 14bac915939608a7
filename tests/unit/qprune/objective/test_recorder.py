"""Per-sample gradients seen from hooks, against those of automatic differentiation."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from qprune import Objective
from qprune.errors import CalibrationError
from qprune.network.weights import find_weights
from qprune.objective.losses import DenseOutputs, PerSample
from qprune.objective.trace.recorder import (
    Recorder,
    Samples,
    differentiating,
    forward,
    mean_loss,
    outputs_of,
)
from qprune.steps.start import Magnitude, Wanda


class Twice(nn.Module):
    """One layer used three times, on different shapes of tokens; one layer never used."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 3)
        self.unused = nn.Linear(4, 2)

    def forward(self, x):
        return self.outer(self.inner(torch.tanh(self.inner(x))) + self.inner(2 * x))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.first = nn.Linear(5, 6)
        self.last = nn.Linear(6, 7)

    def forward(self, ids):
        return self.last(torch.tanh(self.first(self.embed(ids))))


class Pooled(nn.Module):
    """A few convolutions, then a mean over positions and a Linear."""

    def __init__(self, *body, channels):
        super().__init__()
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        return self.head(self.body(x).mean((-2, -1)))


def conv(**options):
    return lambda: Pooled(nn.Conv2d(4, 6, 3, **options), nn.Tanh(), channels=6)


def batch_normed():
    norm = nn.BatchNorm2d(8)
    model = Pooled(
        nn.Conv2d(4, 8, 3, padding=1, bias=False),
        norm,
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8, stride=2),
        nn.ReLU(inplace=True),
        channels=8,
    )
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return model


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 6), nn.ReLU(inplace=True), nn.Linear(6, 3, bias=False)
    )


IMAGES = (5, 4, 8, 7)
CASES = {
    "mlp": (mlp, (5, 3, 4)),
    "linear over tokens": (lambda: nn.Linear(4, 3), (5, 6, 4)),
    "linear over two token dimensions": (lambda: nn.Linear(4, 3), (5, 2, 3, 4)),
    "used three times": (Twice, (5, 4)),
    "used three times over tokens": (Twice, (5, 2, 4)),
    "plain": (conv(), IMAGES),
    "strided": (conv(stride=(2, 3), padding=(1, 2)), IMAGES),
    "dilated": (conv(dilation=2, padding=2), IMAGES),
    "grouped": (conv(groups=2, stride=2), IMAGES),
    "same": (conv(padding="same", dilation=(1, 2)), IMAGES),
    "valid": (conv(padding="valid"), IMAGES),
    "reflect": (conv(padding=1, padding_mode="reflect"), IMAGES),
    "replicate": (conv(padding=(2, 1), padding_mode="replicate"), IMAGES),
    "circular": (conv(padding="same", padding_mode="circular"), IMAGES),
    "depthwise": (lambda: Pooled(nn.Conv2d(4, 8, 3, groups=4), channels=8), IMAGES),
    "one by one": (lambda: Pooled(nn.Conv2d(4, 6, 1), nn.Tanh(), channels=6), IMAGES),
    "whole image": (lambda: Pooled(nn.Conv2d(4, 6, (8, 7)), nn.Tanh(), channels=6), IMAGES),
    "batch norm": (batch_normed, IMAGES),
}


def squared(outputs, targets):
    return ((outputs - targets) ** 2).flatten(1).sum(1) * (1 + outputs.flatten(1)[:, 0])


@pytest.fixture(params=CASES)
def case(request):
    make, shape = CASES[request.param]
    torch.manual_seed(5)
    model = make().double().eval()
    inputs = torch.randn(shape, dtype=torch.double)
    targets = torch.randn_like(model(inputs))
    return model, find_weights(model), Samples(inputs, targets)


def traced(model, layers, samples, loss=squared):
    with differentiating(model, layers), Recorder(layers) as recorder:
        losses = loss(forward(model, samples.inputs), samples.targets)
        deltas = torch.autograd.grad(losses.sum(), recorder.outputs(), allow_unused=True)
        return recorder.trace(deltas, len(samples))


def per_sample_gradients(model, layers, samples, loss=squared):
    """Shape (m, N), by torch.func: no hook, no unfolding."""
    weights = {layer.parameter_name: layer.module.weight.detach() for layer in layers}

    def of_one(weights, x, y):
        return loss(functional_call(model, weights, (x[None],)), y[None])[0]

    parts = vmap(grad(of_one), (None, 0, 0))(weights, samples.inputs, samples.targets)
    return torch.cat([parts[layer.parameter_name].flatten(1) for layer in layers], 1)


def test_columns_are_per_sample_gradients(case):
    model, layers, samples = case
    wanted = per_sample_gradients(model, layers, samples)
    trace = traced(model, layers, samples)
    everything = torch.arange(layers.size)
    few = torch.randperm(layers.size)[: max(2, layers.size // 20)].sort().values
    for indices in (everything, few):
        torch.testing.assert_close(trace.columns(layers, indices), wanted[:, indices])


def test_squares_are_summed_over_samples(case):
    model, layers, samples = case
    wanted = per_sample_gradients(model, layers, samples).square().sum(0)
    squares = list(traced(model, layers, samples).squares(layers))
    assert [s.shape for s in squares] == [(layer.rows, layer.inputs) for layer in layers]
    torch.testing.assert_close(torch.cat([s.flatten() for s in squares]), wanted)


def test_chunks_change_nothing(case, monkeypatch):
    model, layers, samples = case
    trace = traced(model, layers, samples)
    few = torch.arange(0, layers.size, 29)
    columns, squares = trace.columns(layers, few), list(trace.squares(layers))
    monkeypatch.setattr("qprune.objective.trace.functions._PIECE_FLOATS", 1)
    torch.testing.assert_close(trace.columns(layers, few), columns)
    torch.testing.assert_close(list(trace.squares(layers)), squares)


def test_token_ids():
    torch.manual_seed(0)
    model = Tokens().double()
    layers = find_weights(model)
    ids = torch.randint(0, 7, (6, 4))
    samples = Samples(ids, torch.randn(6, 4, 7, dtype=torch.double))
    loss = DenseOutputs().per_sample
    wanted = per_sample_gradients(model, layers, samples, loss)
    trace = traced(model, layers, samples, loss)
    torch.testing.assert_close(trace.columns(layers, torch.arange(layers.size)), wanted)


def test_squares_need_no_full_gradient_of_many_samples(monkeypatch):
    """A chunk of per-sample gradients counts all their entries, not a few."""
    torch.manual_seed(0)
    model = Pooled(nn.Conv2d(4, 6, 3), channels=6)
    layers = find_weights(model)
    trace = traced(model, layers, Samples(torch.randn(32, 4, 5, 5), torch.randn(32, 3)))
    sizes = []
    gradients = type(trace.calls[0][0]).gradients

    def watched(call):
        full = gradients(call)
        sizes.append(full.numel())
        return full

    monkeypatch.setattr("qprune.objective.trace.functions._PIECE_FLOATS", 1000)
    monkeypatch.setattr("qprune.objective.trace.functions.ConvCall.gradients", watched)
    list(trace.squares(layers))
    assert sizes
    assert max(sizes) <= 1000


def test_inputs_that_are_not_one_row_a_sample():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x.mean(0, keepdim=True)).expand(len(x), -1)

    model = Folded()
    samples = Samples(torch.randn(5, 4), torch.randn(5, 3))
    with pytest.raises(CalibrationError, match=r"'linear' got inputs .* first dimension"):
        traced(model, find_weights(model), samples)


def test_convolutions_over_frames_of_a_sample():
    """Samples folded into the batch, (m, frames) -> m * frames: frames are tokens."""

    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3, groups=2)

        def forward(self, x):
            return self.conv(x.flatten(0, 1)).mean((-2, -1)).unflatten(0, x.shape[:2]).tanh()

    torch.manual_seed(0)
    model = Video().double()
    layers = find_weights(model)
    samples = Samples(
        torch.randn(3, 5, 2, 6, 6, dtype=torch.double), torch.randn(3, 5, 4, dtype=torch.double)
    )
    wanted = per_sample_gradients(model, layers, samples)
    trace = traced(model, layers, samples)
    torch.testing.assert_close(trace.columns(layers, torch.arange(layers.size)), wanted)


def test_differentiating_puts_everything_back():
    model = Twice()
    model.train()
    model.inner.eval()
    model.outer.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    layers = find_weights(model)
    with differentiating(model, layers) as weights:
        assert [w is layer.module.weight for w, layer in zip(weights, layers, strict=True)]
        assert all(w.requires_grad for w in weights)
        assert not model.inner.bias.requires_grad
        assert not any(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes


def test_no_hook_stays_behind():
    model = mlp()
    with pytest.raises(KeyError), Recorder(find_weights(model)):
        raise KeyError
    assert not any(module._forward_hooks for module in model.modules())


def test_batches_do_not_change_outputs_or_mean_loss():
    model = mlp()
    samples = Samples(torch.randn(11, 3, 4), torch.randn(11, 3))
    whole = outputs_of(model, samples.inputs, 100)
    torch.testing.assert_close(outputs_of(model, samples.inputs, 4), whole)
    loss = PerSample(lambda outputs, targets: (outputs - targets).square().sum(1))
    wanted = loss.per_sample(whole, samples.targets).mean().item()
    assert mean_loss(model, samples, loss, 4) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(5, 2), "does not take calibration inputs of shape"),
        (nn.Sequential(nn.Linear(4, 2), nn.Flatten(0)), "one output per sample"),
    ],
)
def test_a_model_that_does_not_fit_the_data(model, reason):
    with pytest.raises(CalibrationError, match=reason):
        forward(model, torch.randn(3, 4))


@pytest.mark.parametrize("groups", [1, 2])
def test_wanda_weighs_by_input_norms(groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 2, groups=groups, bias=False)
    model = nn.Sequential(conv, nn.Flatten())
    layers = find_weights(model)
    samples = Samples(torch.randn(7, 4, 3, 3), torch.zeros(7, 1))
    objective = Objective(model, layers, samples, DenseOutputs(), 3)
    given = objective, None, layers.read(), torch.Generator()
    assert torch.equal(Magnitude().scores(*given), layers.read().abs())
    scores = Wanda().scores(*given).view_as(conv.weight)
    for o in range(6):
        for i in range(4 // groups):
            channel = i + (o * groups // 6) * (4 // groups)
            for y in range(2):
                for x in range(2):
                    seen = samples.inputs[:, channel, y : y + 2, x : x + 2]
                    wanted = conv.weight[o, i, y, x].abs() * seen.square().sum().sqrt()
                    torch.testing.assert_close(scores[o, i, y, x], wanted.detach())

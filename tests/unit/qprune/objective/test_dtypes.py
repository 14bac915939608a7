"""Half precision and double: every kind of network, curvature, start and compensation."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import qprune
from qprune.moving.distill import Distillation
from qprune.network.weights import find_weights
from qprune.objective import EmpiricalFisher, ExactHessian, SampledFisher, SketchedFisher
from qprune.objective.losses import DenseOutputs
from qprune.objective.trace.recorder import Samples

DTYPES = [torch.float16, torch.bfloat16, torch.float64]
STEPS = qprune.Compensation(iterations=(2,), lengths=(1.0,), final_steps=1)
SHORT = qprune.Networkwise(stages=1, rounds=1, final_rounds=1, block_size=24)
QUICK = {
    "sparsity": 0.5,
    "method": SHORT,
    "augment": None,
    "compensate": STEPS,
}


def mlp():
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 4))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    ).eval()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        x = self.into(x)
        return self.out((x + self.attention(x, x, x)[0]).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.recurrent = nn.LSTM(6, 7, batch_first=True)
        self.out = nn.Linear(7, 4)

    def forward(self, tokens):
        return self.out(self.recurrent(self.words(tokens))[0][:, -1])


NETWORKS = {"mlp": mlp, "cnn": cnn, "attention": Attention, "recurrent": Recurrent}
# Wanda needs inputs that nobody sees inside of attention and an LSTM.
CHOICES = {
    "sketched": {"method": replace(SHORT, curvature=SketchedFisher())},
    "sampled": {"method": replace(SHORT, curvature=SampledFisher())},
    "empirical": {"method": replace(SHORT, curvature=EmpiricalFisher())},
    "hessian": {"method": replace(SHORT, curvature=ExactHessian()), "compensate": False},
    "random": {"method": replace(SHORT, start="random"), "compensate": False},
    "magnitude": {"method": replace(SHORT, start="magnitude"), "compensate": False},
    "gradient": {"method": replace(SHORT, start="gradient"), "compensate": False},
    "labels": {"loss": qprune.Labels()},
    "distillation": {"compensate": Distillation(steps=4, samples_per_step=4, final_steps=1)},
}


def network(kind, dtype):
    """A network, inputs and labels."""
    torch.manual_seed(0)
    model = NETWORKS[kind]().to(dtype)
    shape = {"mlp": (6,), "cnn": (2, 6, 6), "attention": (3, 6)}.get(kind)
    inputs = torch.randint(0, 11, (20, 5)) if shape is None else torch.randn(20, *shape).to(dtype)
    return model, inputs, torch.arange(20) % 4


def pruned(kind, dtype, **options):
    model, inputs, labels = network(kind, dtype)
    data = (inputs, labels) if "loss" in options else inputs
    if kind == "recurrent":
        options["targets"] = [nn.Embedding, nn.LSTM, nn.Linear]
    return qprune.prune(model, data, **QUICK | options)


def require_right(run, dtype):
    """Exact counts and zeros, finite losses, and everything of the dtype that it came in."""
    size = sum(kept.numel() for kept in run.mask.values())
    assert sum(int((~kept).sum()) for kept in run.mask.values()) == round(0.5 * size)
    for name, kept in run.mask.items():
        assert not run.model.get_parameter(name)[~kept].any()
    for tensor in run.model.state_dict().values():
        assert tensor.dtype == dtype or not tensor.is_floating_point()
        assert torch.isfinite(tensor).all()
    assert all(abs(step.loss) < 100 for step in run.report.steps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_goes_through_and_is_right(kind, choice, dtype):
    require_right(pruned(kind, dtype, **CHOICES[choice]), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_wanda_too(kind, dtype):
    require_right(
        pruned(kind, dtype, method=replace(SHORT, start="wanda"), compensate=False), dtype
    )


def expansion_of(model, inputs, answers):
    samples = Samples(inputs, answers)
    objective = qprune.Objective(model, find_weights(model), samples, DenseOutputs(), 8)
    return EmpiricalFisher().expand(objective, torch.Generator())


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_small_gradients_in_half_precision_have_a_curvature(kind):
    # Squares of gradients of 1e-4 are zero in float16.
    model, inputs, _ = network(kind, torch.float16)
    inputs = 1e-3 * inputs
    answers = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)).half()
    half = expansion_of(model, inputs, answers)
    exact = expansion_of(copy.deepcopy(model).double(), inputs.double(), answers.double())
    reached = exact.diagonal > 1e-12
    assert int(reached.sum()) > 0.5 * len(reached)
    close = (half.diagonal[reached] / exact.diagonal[reached] - 1).abs() < 0.1
    assert close.double().mean() > 0.95
    assert half.diagonal.dtype == half.gradient.dtype == torch.float32


def test_double_precision_is_not_cut_to_single():
    model, inputs, _ = network("mlp", torch.float64)
    answers = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = expansion_of(model, inputs, answers)
    layers, loss = find_weights(model), DenseOutputs()
    gradient = torch.zeros(layers.size, dtype=torch.float64)
    squares = torch.zeros_like(gradient)
    for x, y in zip(inputs.split(1), answers.split(1), strict=True):
        parts = torch.autograd.grad(loss.per_sample(model(x), y).sum(), layers.parameters)
        one = torch.cat([part.flatten() for part in parts])
        gradient += one / 20
        squares += one**2 / 20
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.diagonal, squares, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_losses_are_compared_in_single_precision(dtype):
    model, inputs, _ = network("mlp", dtype)
    with torch.no_grad():
        outputs = model(inputs)
        other = outputs + 0.02 * torch.randn(outputs.shape).to(dtype)
    found = DenseOutputs().per_sample(other, outputs)
    expected = DenseOutputs().per_sample(other.double(), outputs.double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-2, atol=1e-7)

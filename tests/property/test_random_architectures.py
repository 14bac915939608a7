"""Random small architectures: gradients are autograd's, counts exact, masks agree with zeros."""

from __future__ import annotations

import warnings

import pytest
import torch
from autograd_reference import per_sample_gradients, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import qprune
from qprune.network.weights import find_weights

SAMPLES, TOKENS, WIDTH = 20, 3, 4
FEW = 6


class By(nn.Module):
    """Parts, and a function of (parts, x) that keeps the shape (m, TOKENS, WIDTH)."""

    def __init__(self, run, *parts: nn.Module) -> None:
        super().__init__()
        self.run, self.parts = run, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.parts, x)


def square(**options) -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH, **options)


def swapped(layer: nn.Module) -> nn.Module:
    """A layer on (T, m, F)."""
    return By(lambda parts, x: parts[0](x.transpose(0, 1)).transpose(0, 1), layer)


def in_channels(layer: nn.Module) -> nn.Module:
    """A layer on (m, F, T)."""
    return By(lambda parts, x: parts[0](x.transpose(1, 2)).transpose(1, 2), layer)


def attention(**options) -> nn.Module:
    return By(
        lambda parts, x: parts[0](x, x, x, need_weights=False)[0],
        nn.MultiheadAttention(WIDTH, 2, **options),
    )


def _experts(parts, x: Tensor) -> Tensor:
    """The first layer for samples of one kind, the second for the others."""
    chosen = x.sum((1, 2)) > 0
    out = torch.zeros_like(x)
    for rows, layer in (
        (torch.nonzero(chosen)[:, 0], parts[0]),
        (torch.nonzero(~chosen)[:, 0], parts[1]),
    ):
        out = out.index_add(0, rows, layer(x[rows]))
    return out


LEAVES = {
    "linear": square,
    "linear without bias": lambda: square(bias=False),
    "bottleneck": lambda: nn.Sequential(
        nn.Linear(WIDTH, 2), nn.ReLU(inplace=True), nn.Linear(2, WIDTH)
    ),
    "linear by a function": lambda: By(
        lambda parts, x: functional.linear(x, parts[0].weight, parts[0].bias), square()
    ),
    "product": lambda: By(lambda parts, x: x @ parts[0].weight, square(bias=False)),
    "linear on time-major rows": lambda: By(
        lambda parts, x: (
            parts[0](x.transpose(0, 1).reshape(-1, WIDTH)).view(TOKENS, -1, WIDTH).transpose(0, 1)
        ),
        square(),
    ),
    "linear on stacked views": lambda: By(
        lambda parts, x: torch.stack(parts[0](torch.cat([x, x.flip(1)])).chunk(2)).prod(0), square()
    ),
    "conv1d": lambda: in_channels(nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
    "depthwise conv1d": lambda: in_channels(nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)),
    "conv transpose": lambda: in_channels(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1)),
    "conv2d": lambda: By(
        lambda parts, x: parts[0](x[:, None]).mean(1), nn.Conv2d(1, 3, 3, padding=1)
    ),
    "lstm": lambda: By(lambda parts, x: parts[0](x)[0], nn.LSTM(WIDTH, WIDTH, batch_first=True)),
    "gru time-major": lambda: swapped(By(lambda parts, x: parts[0](x)[0], nn.GRU(WIDTH, WIDTH))),
    "attention": lambda: attention(batch_first=True),
    "attention time-major": lambda: swapped(attention()),
    "weight norm": lambda: parametrizations.weight_norm(square()),
    "experts": lambda: By(_experts, square(), square()),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "tanh": nn.Tanh,
    "relu in place": lambda: By(lambda parts, x: parts[0](1 * x), nn.ReLU(inplace=True)),
}

WRAPPERS = {
    "sequence": nn.Sequential,
    "residual": lambda *parts: By(lambda parts, x: x + nn.Sequential(*parts)(x), *parts),
    "twice": lambda *parts: By(
        lambda parts, x: nn.Sequential(*parts)(nn.Sequential(*parts)(x).tanh()), *parts
    ),
    "sum": lambda *parts: By(lambda parts, x: sum(part(x) for part in parts).tanh(), *parts),
}

blocks = st.recursive(
    st.sampled_from(list(LEAVES)),
    lambda inner: st.tuples(
        st.sampled_from(list(WRAPPERS)), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=4,
)
architectures = st.tuples(st.just("sequence"), st.lists(blocks, min_size=2, max_size=4))


def built(block) -> nn.Module:
    """The module that a block describes: the name of a leaf, or (wrapper, blocks)."""
    if isinstance(block, str):
        return LEAVES[block]()
    wrapper, inner = block
    return WRAPPERS[wrapper](*map(built, inner))


def network(block, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            built(block), By(lambda parts, x: parts[0](x.tanh().mean(1)), nn.Linear(WIDTH, 3))
        ).eval()


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).sum(1) * (1 + outputs[:, 0])


def samples_of(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(SAMPLES, TOKENS, WIDTH, generator=generator),
        torch.randn(SAMPLES, 3, generator=generator),
    )


@settings(derandomize=True, max_examples=30)
@given(block=architectures, seed=st.integers(0, 99))
def test_gradients_are_autograds(block, seed):
    model = network(block, seed).double()
    inputs, answers = (tensor[:FEW].double() for tensor in samples_of(seed))
    layers, trace = traced(model, find_weights(model), inputs, squared, answers)
    wanted = per_sample_gradients(model, layers.parameters, inputs, squared, answers)
    found = trace.columns(layers, torch.arange(layers.size))
    for layer, ours, theirs in zip(
        layers, layers.split(found.T), layers.split(wanted.T), strict=True
    ):
        error, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
        assert error <= 1e-5 * scale, (layer.name, error, scale)


@settings(derandomize=True, max_examples=8)
@given(block=architectures, seed=st.integers(0, 99), sparsity=st.sampled_from([0.3, 0.5, 0.8]))
def test_counts_are_exact_and_masks_agree_with_zeros(block, seed, sparsity):
    model = network(block, seed)
    matrices = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    matrices = {name: p for name, p in matrices.items() if not name.endswith("original0")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruned = qprune.prune(
            model,
            samples_of(seed)[0],
            sparsity=sparsity,
            method=qprune.Networkwise(stages=2, rounds=1, final_rounds=0, block_size=16),
            compensate=qprune.Compensation(
                iterations=(1,), curvature_share=1.0, lengths=(1.0,), final_steps=1
            ),
        )
    left = {tensor.name for tensor in pruned.report.coverage.left}
    assert set(pruned.mask) | left == set(matrices)
    for name, kept in pruned.mask.items():
        assert torch.equal(kept, matrices[name] != 0), name
    total = sum(kept.numel() for kept in pruned.mask.values())
    zeros = sum(int((~kept).sum()) for kept in pruned.mask.values())
    assert zeros == round(sparsity * total)
    assert pruned.report.achieved_sparsity == pytest.approx(zeros / total)

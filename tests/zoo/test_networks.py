"""Every network of the zoo: its gradients, its counts, its coverage, and what an error leaves."""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from autograd_reference import per_sample_gradients, traced
from torch import Tensor
from zoo_entry import Entry, in_precision
from zoo_networks import ENTRIES

import qprune
from qprune.data.calibration import Calibration
from qprune.data.inputs import mapped
from qprune.errors import QpruneError
from qprune.network.weights import Weights, find_weights
from qprune.objective.trace.autograd import ByAutograd, Traced
from qprune.objective.trace.recorder import forward

try:
    import zoo_transformers
except ImportError:  # transformers is an extra
    ALL = ENTRIES
else:
    ALL = (*ENTRIES, *zoo_transformers.ENTRIES)

PRUNED = [entry for entry in ALL if entry.refused is None]
REFUSED = [entry for entry in ALL if entry.refused is not None]
FEW = 6  # samples whose gradients are compared: divides no other length of the zoo but by design
SHORT = {
    "method": qprune.Networkwise(stages=2, rounds=1, final_rounds=1, block_size=16),
    "compensate": qprune.Compensation(
        iterations=(1,), curvature_share=1.0, lengths=(1.0,), final_steps=1
    ),
}


def named(entries):
    return pytest.mark.parametrize("entry", entries, ids=[entry.name for entry in entries])


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose derivative differs from output to output and from sample to sample."""
    return ((outputs - targets) ** 2).flatten(1).sum(1) * (1 + outputs.flatten(1)[:, 0])


def path_of(layers: Weights) -> str:
    """As `Entry.path` says it."""
    kinds = {type(layer.path) for layer in layers}
    return {frozenset({Traced}): "fast", frozenset({ByAutograd}): "slow"}.get(
        frozenset(kinds), "mixed"
    )


def test_the_zoo_is_large_and_varied():
    assert len(PRUNED) >= 50
    assert max(Counter(entry.kind for entry in ALL).values()) <= 3
    assert len({entry.name for entry in ALL}) == len(ALL)
    slow = [entry for entry in PRUNED if entry.path != "fast"]
    assert len(slow) >= 15
    assert sum("time-major" in entry.name for entry in slow) >= 2


@named(PRUNED)
def test_gradients_are_autograds(entry: Entry):
    model = entry.make().to(entry.dtype)
    inputs = in_precision(entry.inputs(), entry.dtype)[:FEW]
    with torch.no_grad(), warnings.catch_warnings():
        # Reentrant checkpoints warn of passes without gradients.
        warnings.simplefilter("ignore")
        outputs = forward(model, mapped(inputs, torch.clone))
        each = [forward(model, mapped(inputs[i : i + 1], torch.clone)) for i in range(FEW)]
    # Otherwise "the gradient of a sample" would mean nothing.
    torch.testing.assert_close(outputs, torch.cat(each), rtol=entry.tolerance, atol=entry.tolerance)
    answers = outputs + torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2)).to(
        outputs
    )
    layers = find_weights(model, entry.targets)
    layers, trace = traced(model, layers, inputs, squared, answers)
    assert path_of(layers) == entry.path, [(layer.name, layer.path) for layer in layers]
    wanted = per_sample_gradients(model, layers.parameters, inputs, squared, answers)
    found = trace.columns(layers, torch.arange(layers.size))
    assert found.shape == wanted.shape == (FEW, layers.size)
    squares = torch.cat([part.reshape(-1) for part in trace.squares(layers)])
    for layer, ours, theirs, sums in zip(
        layers, layers.split(found.T), layers.split(wanted.T), layers.split(squares), strict=True
    ):
        scale = theirs.abs().max().item()
        error = (ours - theirs).abs().max().item()
        assert error <= entry.tolerance * scale, (layer.name, error, scale)
        error = (sums - theirs.square().sum(1)).abs().max().item()
        assert error <= 2 * entry.tolerance * FEW * scale**2, (layer.name, "squares", error)
    few = torch.arange(0, layers.size, 23)  # so few are gathered, not cut from all
    torch.testing.assert_close(trace.columns(layers, few), found[:, few], rtol=1e-4, atol=1e-6)


def parameter_name(name: str, parameters) -> str:
    """Of a record: its name leaves out a last "weight"."""
    return name if name in parameters else f"{name}.weight".removeprefix(".")


def _is_length(name: str, parameter: Tensor) -> bool:
    """Whether it holds the lengths of a weight norm: a vector, stored as a matrix."""
    own = name.rpartition(".")[2]
    return own in {"original0", "weight_g"} and parameter.numel() == max(parameter.shape)


def state_of(model):
    """All that a run may not leave changed, but for the weights it prunes."""
    return {
        "flags": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad is None for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "dtypes": [p.dtype for p in model.parameters()],
        "ids": [id(p) for p in model.parameters()],
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "random": (
            torch.random.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
        ),
    }


def run(entry: Entry, model, **changes):
    """(what `prune` returns, the warnings it gave)."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        pruned = qprune.prune(
            model,
            Calibration(entry.inputs()),
            sparsity=0.5,
            **({} if entry.targets is None else {"targets": entry.targets}),
            **SHORT | changes,
        )
    return pruned, [str(warning.message) for warning in given]


@named(PRUNED)
def test_counts_are_exact_and_coverage_is_complete(entry: Entry):
    model = entry.make()
    with torch.no_grad(), warnings.catch_warnings():
        # transformers sets hooks of its own in a model's first pass.
        warnings.simplefilter("ignore")
        forward(model, entry.inputs())
    model.train()
    list(model.modules())[-1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = state_of(model)
    pruned, given = run(entry, model)
    assert state_of(model) == state
    report, parameters = pruned.report, dict(model.named_parameters())
    names = [parameter_name(record.name, parameters) for record in report.layers]
    assert set(names) == set(pruned.mask)
    for name, record in zip(names, report.layers, strict=True):
        zero = parameters[name] == 0
        assert torch.equal(pruned.mask[name], ~zero), name
        assert (record.num_weights, record.num_pruned) == (zero.numel(), int(zero.sum()))
        assert tuple(record.shape) == tuple(zero.shape)
    total = sum(record.num_weights for record in report.layers)
    zeros = sum(record.num_pruned for record in report.layers)
    assert zeros == round(0.5 * total)
    assert report.achieved_sparsity == pytest.approx(zeros / total)
    # Every tensor is a target or named as left dense, and what is left dense is as it was.
    matrices = {name for name, p in parameters.items() if p.ndim > 1 and p.numel()}
    matrices -= {name for name in matrices if _is_length(name, parameters[name])}
    left = {tensor.name for tensor in report.coverage.left}
    assert set(names) | left == matrices
    assert not set(names) & left
    expected = {n for n in matrices if any(re.fullmatch(p, n) for p in entry.left_dense)}
    assert left == expected
    same = {id(p) for name, p in parameters.items() if name in names}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in same:
            assert torch.equal(tensor, before[name]), name
    if entry.targets is None:
        assert all(any(name in line for line in given) for name in left)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.eval()
        assert torch.isfinite(forward(model, entry.inputs())).all()


@named(REFUSED)
def test_refused_in_one_line(entry: Entry):
    model = entry.make()
    with pytest.raises(QpruneError, match=entry.refused) as refused:
        run(entry, model)
    assert "\n" not in str(refused.value)


class StopError(Exception):
    """Raised by an observer."""


ON_ERROR = [
    "linear",
    "in-place activations",
    "lstm time-major in two layers",
    "transformer encoder",
    "weight norm",
    "checkpointed block, reentrant",
    "two linears of one weight",
    "frozen flags",
    "spectral norm by hooks",
    "conv2d on images with channels last",
    "mixture of experts",
    "float16",
]


@pytest.mark.parametrize("after", [0, 1, 2])
@named([entry for entry in PRUNED if entry.name in ON_ERROR])
def test_an_error_puts_everything_back(entry: Entry, after: int):
    model = entry.make()
    model.train()
    list(model.modules())[-1].eval()
    next(model.parameters()).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = state_of(model)
    steps = []

    def observe(step):
        steps.append(step)
        if len(steps) > after:
            raise StopError

    with pytest.raises(StopError):
        run(entry, model, observe=observe)
    assert state_of(model) == state
    now = model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())

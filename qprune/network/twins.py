"""Temporary Linear layers in place of transposed ones, for code that moves Linear weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def linear_twins(model: nn.Module) -> Iterator[frozenset[str]]:
    """Replace every Conv1D (GPT-2's) within the context by an equivalent Linear of the same name.

    Afterwards, also on an error, the Conv1D are back with the Linear layers' weights.

    Yields:
        The parameter names of the weights that are transposed meanwhile.
    """
    originals = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor)
    }
    try:
        for name, module in originals.items():
            _put(model, name, _twin(module))
        yield frozenset(f"{name}.weight" for name in originals)
    finally:
        with torch.no_grad():
            for name, module in originals.items():
                twin = model.get_submodule(name)
                if twin is not module:
                    module.get_parameter("weight").copy_(twin.get_parameter("weight").T)
                    _put(model, name, module)


def turned(mask: Mapping[str, Tensor], names: frozenset[str]) -> dict[str, Tensor]:
    """Return the mask with the entries in ``names`` transposed."""
    return {name: kept.T.contiguous() if name in names else kept for name, kept in mask.items()}


def _twin(module: nn.Module) -> nn.Linear:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, nn.Parameter)
    twin = nn.Linear(*weight.shape, bias=False, device="meta")
    twin.weight = nn.Parameter(weight.detach().T.contiguous(), weight.requires_grad)
    twin.bias = bias  # pyright: ignore[reportAttributeAccessIssue]
    return twin.train(module.training)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)

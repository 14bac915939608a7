"""Kinds of weights: default targets among a module's tensors, and their layouts.

One table over torch's own modules. A tensor in no row can still be pruned if it is named: its
first dimension is then taken as outputs, the others as inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize


class Layout(Protocol):
    """Protocol of a layout: the dimensions of a tensor's outputs and inputs.

    `input_groups` is 0 where the outputs come first, and else the number of groups of inputs.
    """

    @property
    def input_groups(self) -> int: ...

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return the tensor as (outputs, inputs of each)."""
        ...

    def back(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Return a tensor of ``shape``: the inverse of `matrix`."""
        ...


@dataclass(frozen=True)
class OutputsFirst:
    """Layout with outputs in the first dimension, inputs in all others: Linear, convolutions."""

    @property
    def input_groups(self) -> int:
        return 0

    def matrix(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(len(tensor), -1)

    def back(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix.reshape(shape)


@dataclass(frozen=True)
class InputsFirst:
    """Layout with inputs first, outputs second: transposed convolutions, GPT-2.

    Args:
        groups: groups of a convolution: consecutive parts of its inputs.
    """

    groups: int = 1

    @property
    def input_groups(self) -> int:
        return self.groups

    def matrix(self, tensor: Tensor) -> Tensor:
        parts = tensor.reshape(self.groups, -1, tensor.shape[1], tensor[0, 0].numel())
        return parts.transpose(1, 2).reshape(self.groups * tensor.shape[1], -1)

    def back(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        parts = matrix.reshape(self.groups, shape[1], shape[0] // self.groups, -1)
        return parts.transpose(1, 2).reshape(shape)


def layout_of(input_groups: int) -> Layout:
    """Return the layout with this `Layout.input_groups`."""
    return InputsFirst(input_groups) if input_groups else OutputsFirst()


@dataclass(frozen=True)
class Kind:
    """Kind of a tensor, by the module that holds it.

    Attributes:
        default: True if it is pruned by default.
        layout: dimensions of its outputs and inputs.
        contracted: True if a product sums over its inputs, so that N:M applies.
        why: reason why it stays dense by default.
    """

    default: bool = True
    layout: Layout = OutputsFirst()
    contracted: bool = True
    why: str = ""


#: Matrix in the layout of torch's Linear.
OUTPUTS_FIRST = Kind()
_BARE = Kind(False, contracted=False, why="a parameter of unknown kind")

# The first row whose class fits the module is used; names are full matches.
_TABLE: tuple[tuple[type[nn.Module], str, Callable[[nn.Module], Kind]], ...] = (
    (_ConvTransposeNd, "weight", lambda m: Kind(layout=InputsFirst(m.groups))),  # type: ignore
    (_ConvNd, "weight", lambda m: OUTPUTS_FIRST),
    (nn.Linear, "weight", lambda m: OUTPUTS_FIRST),
    (nn.MultiheadAttention, r"(in|q|k|v)_proj_weight", lambda m: OUTPUTS_FIRST),
    (nn.RNNBase, r"weight_(ih|hh|hr)_.*", lambda m: OUTPUTS_FIRST),
    (nn.RNNCellBase, r"weight_(ih|hh)", lambda m: OUTPUTS_FIRST),
    (nn.Embedding, "weight", lambda m: Kind(False, contracted=False, why="an embedding")),
    (nn.EmbeddingBag, "weight", lambda m: Kind(False, contracted=False, why="an embedding")),
    (nn.Bilinear, "weight", lambda m: Kind(False, contracted=False, why="a bilinear form")),
)


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Evaluation mode within the context; afterwards every module has its own mode again.

    In training mode a spectral norm updates its buffers whenever its weight is read.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def kind_of(module: nn.Module, name: str) -> Kind:
    """Return the kind of the tensor ``name`` that ``module`` itself holds."""
    for known, pattern, kind in _TABLE:
        if isinstance(module, known) and re.fullmatch(pattern, name):
            return kind(module)
    # A class of transformers, which may not be installed.
    if type(module).__name__ == "Conv1D" and name == "weight":
        return Kind(layout=InputsFirst())
    return _BARE


def source_kind(module: nn.Module, weight: str, source: nn.Parameter) -> Kind | None:
    """Return the kind of a parameter from which ``module`` computes its tensor ``weight``.

    Zeros under a spectral_norm are zeros of the weight, so that it can be pruned; through an
    orthogonal parametrization they are not. In a weight_norm's direction they are too, but a row
    of nothing else is divided by its length, zero; it stays dense unless it is named. None for a
    vector in the shape of a matrix, such as the lengths of a weight_norm.

    Args:
        module: module whose attribute ``weight`` is computed, in evaluation mode.
        weight: the attribute's name.
        source: name of the parameter that it is computed from.
    """
    kind = kind_of(module, weight)
    if source.numel() == max(source.shape) != getattr(module, weight).numel():
        return None
    if getattr(module, weight).shape != source.shape:
        return Kind(False, contracted=False, why="a part that a weight is made from")
    chance = torch.rand(source.shape, generator=torch.Generator().manual_seed(0))
    zero = (chance <= chance.min().clamp(min=1 / 8)).to(source.device)
    made = _made_with(module, weight, source, zero)
    kept = made.shape == source.shape and (made[zero] == 0).all() and (made[~zero] != 0).any()
    if kind.default and not kept:
        return Kind(False, kind.layout, why="zeros in it are no zeros of the weight made from it")
    row = torch.zeros_like(zero)
    row[0] = True
    if kind.default and not torch.isfinite(_made_with(module, weight, source, row)).all():
        return Kind(
            False,
            kind.layout,
            why="a row of zeros in it makes a weight of NaN; make the weight a plain one first, "
            "by remove_parametrizations or remove_weight_norm",
        )
    return kind


@torch.no_grad()
def _made_with(module: nn.Module, weight: str, source: nn.Parameter, zero: Tensor) -> Tensor:
    """Return the weight that ``module`` computes from a source with zeros at ``zero``."""
    before = source.detach().clone()
    try:
        source.masked_fill_(zero, 0)
        return _computed(module, weight).detach().clone()
    finally:
        source.copy_(before)
        _computed(module, weight)


def _computed(module: nn.Module, weight: str) -> Tensor:
    """Return the weight computed from its present sources."""
    if not parametrize.is_parametrized(module):
        # The older torch.nn.utils.weight_norm sets it in a hook before every call.
        for hook in module._forward_pre_hooks.values():
            hook(module, ())
    return getattr(module, weight)

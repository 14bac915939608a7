"""Kinds of weights: which tensors of a module are pruned by default, and how they lie.

One table over torch's own modules. A tensor that is in no row can still be pruned, where it is
named: its first dimension is then taken for the outputs, the rest for the inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize


class Layout(Protocol):
    """A strategy: where a tensor has its outputs and where its inputs.

    `input_groups` is 0 where the outputs come first, and else the number of groups of inputs.
    """

    @property
    def input_groups(self) -> int: ...

    def matrix(self, tensor: Tensor) -> Tensor:
        """The tensor as (outputs, inputs of each)."""
        ...

    def back(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `matrix`, for a tensor of ``shape``."""
        ...


@dataclass(frozen=True)
class OutputsFirst:
    """Outputs in the first dimension, inputs in all others: torch's Linear and convolutions."""

    @property
    def input_groups(self) -> int:
        return 0

    def matrix(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(len(tensor), -1)

    def back(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix.reshape(shape)


@dataclass(frozen=True)
class InputsFirst:
    """Inputs in the first dimension, outputs in the second: transposed convolutions, GPT-2.

    Args:
        groups: of a convolution; its inputs are cut into as many parts, one after the other.
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
    """The layout that has this `Layout.input_groups`."""
    return InputsFirst(input_groups) if input_groups else OutputsFirst()


@dataclass(frozen=True)
class Kind:
    """What is known of a tensor by the module that holds it.

    Attributes:
        default: whether it is pruned where nobody names it.
        layout: where its outputs and inputs are.
        contracted: whether a product sums over its inputs, so that N:M means something.
        why: why it stays dense by default.
    """

    default: bool = True
    layout: Layout = OutputsFirst()
    contracted: bool = True
    why: str = ""


#: A matrix as torch's Linear holds it.
OUTPUTS_FIRST = Kind()
_BARE = Kind(False, contracted=False, why="a parameter of no kind that is known")

# The first row whose class a module is an instance of counts; names are full matches.
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


def kind_of(module: nn.Module, name: str) -> Kind:
    """The kind of the tensor ``name`` that ``module`` itself holds."""
    for known, pattern, kind in _TABLE:
        if isinstance(module, known) and re.fullmatch(pattern, name):
            return kind(module)
    # transformers' own, which cannot be imported here.
    if type(module).__name__ == "Conv1D" and name == "weight":
        return Kind(layout=InputsFirst())
    return _BARE


def source_kind(module: nn.Module, weight: str, source: nn.Parameter) -> Kind | None:
    """The kind of a parameter from which ``module`` computes its tensor ``weight``.

    Zeros under a spectral_norm are zeros of the weight, so that it can be pruned; through an
    orthogonal parametrization they are not. In a weight_norm's direction they are too, but a row
    of nothing else is divided by its length, zero; it stays dense unless it is named. None for a
    vector in the shape of a matrix, such as the lengths of a weight_norm.

    Args:
        module: whose attribute ``weight`` is computed.
        weight: the attribute's name.
        source: what it is computed from.
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
    """The weight that ``module`` makes of a source that is zero where ``zero`` says so."""
    before = source.detach().clone()
    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        module.eval()  # In training, computing a spectral norm moves its buffers.
        source.masked_fill_(zero, 0)
        return _computed(module, weight).detach().clone()
    finally:
        source.copy_(before)
        _computed(module, weight)
        for inner, mode in modes:
            inner.training = mode


def _computed(module: nn.Module, weight: str) -> Tensor:
    """The weight from its sources as they are now."""
    if not parametrize.is_parametrized(module):
        # The older way (torch.nn.utils.weight_norm): a hook before every call sets it.
        for hook in module._forward_pre_hooks.values():
            hook(module, ())
    return getattr(module, weight)

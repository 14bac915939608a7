"""Inputs of a model: one tensor, or tensors in any nesting, samples first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from qprune.errors import CalibrationError

Call = Callable[[nn.Module, Any], Any]
"""Call of a model: (model, batch) -> outputs."""


def by_arguments(model: nn.Module, tree: Any) -> Any:
    """Call the model with ``tree``: a mapping by keyword, a tuple by position, else as it is."""
    if isinstance(tree, Mapping):
        return model(**tree)
    if isinstance(tree, tuple):
        return model(*tree)
    return model(tree)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of m samples that are several tensors, or need their own call of the model.

    Args:
        tree: tensors of shape (m, ...) in tuples, lists and dicts of any nesting; other
            values are passed unchanged.
        call: calls the model with the tree, or with a part of it.

    Raises:
        CalibrationError: no tensor, or tensors of different first dimensions.

    Example:
        >>> import torch
        >>> inputs = Inputs({"x": torch.zeros(5, 3), "z": torch.zeros(5, 2)})
        >>> len(inputs), len(inputs[torch.tensor([0, 4])])
        (5, 2)
    """

    tree: Any
    call: Call = by_arguments

    def __post_init__(self) -> None:
        sizes = {len(tensor) if tensor.ndim else None for tensor in self.tensors}
        if len(sizes) != 1 or None in sizes:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in self.tensors) or "none"
            raise CalibrationError(
                f"every input must have the samples in its first dimension; the shapes are {shapes}"
            )

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the nesting."""
        return [leaf for leaf in tree_leaves(self.tree) if isinstance(leaf, Tensor)]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> Inputs:
        """Return the samples at ``index``, a tensor of indices or a slice."""
        return self.map(lambda tensor: tensor[index])

    def split(self, size: int) -> list[Inputs]:
        """Return consecutive batches of at most ``size`` samples."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return a copy with ``function`` applied to every tensor."""
        mapped = tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, self.tree)
        return Inputs(mapped, self.call)


AnyInputs = Tensor | Inputs


def called(model: nn.Module, inputs: AnyInputs) -> Any:
    """Return the result of ``model`` for ``inputs``."""
    return inputs.call(model, inputs.tree) if isinstance(inputs, Inputs) else model(inputs)


def tensors_of(inputs: AnyInputs) -> list[Tensor]:
    """Return all tensors of ``inputs``."""
    return inputs.tensors if isinstance(inputs, Inputs) else [inputs]


def mapped(inputs: AnyInputs, function: Callable[[Tensor], Tensor]) -> AnyInputs:
    """Return ``inputs`` with ``function`` applied to every tensor."""
    return inputs.map(function) if isinstance(inputs, Inputs) else function(inputs)


def token_mask(inputs: AnyInputs) -> Tensor | None:
    """Return a bool mask (m, T), False at padding tokens of the outputs; None without a mask.

    A decoder has its own outputs, and its own mask.
    """
    if not isinstance(inputs, Inputs) or not isinstance(inputs.tree, Mapping):
        return None
    decodes = any(name.startswith("decoder_") or name == "labels" for name in inputs.tree)
    mask = inputs.tree.get("decoder_attention_mask" if decodes else "attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

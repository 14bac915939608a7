"""A model as it was: evaluation mode for the time of a run, everything put back on an error."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from qprune.network.layouts import evaluation_mode
from qprune.network.statistics import affine_of
from qprune.network.weights import Weights


@dataclass(frozen=True, eq=False)
class Dense:
    """The targeted weights before anything was pruned: the one copy, on the host.

    Attributes:
        tensors: one for each weight, in its own dtype and shape.
        weights: the targeted ones.
    """

    tensors: list[Tensor]
    weights: Weights

    @classmethod
    def of(cls, weights: Weights) -> Dense:
        """A copy of the present values."""
        return cls([tensor.to("cpu") for tensor in weights.copies()], weights)

    @cached_property
    def values(self) -> Tensor:
        """All values as one vector, shape (N,), made when first asked for."""
        return self.weights.flat(self.tensors)

    @property
    def num_zero(self) -> int:
        """Number of values that are zero."""
        return sum(int((tensor == 0).sum()) for tensor in self.tensors)

    def narrowed(self, weights: Weights) -> Dense:
        """The same tensors of some of the weights."""
        pairs = zip(self.weights, self.tensors, strict=True)
        held = {(weight.parameter_name, weight.expert): tensor for weight, tensor in pairs}
        return Dense([held[w.parameter_name, w.expert] for w in weights], weights)

    @torch.no_grad()
    def put_back(self) -> None:
        """Write the values into the model."""
        if self.weights.sharded:
            self.weights.write(self.values)
            return
        for weight, tensor in zip(self.weights, self.tensors, strict=True):
            weight.part(weight.parameter).copy_(tensor)


@contextmanager
def restored_on_error(model: nn.Module, weights: Weights) -> Generator[Dense]:
    """Evaluation mode within the context; on any error everything that a run changes is put back.

    Yields:
        The copy of the targeted weights.
    """
    dense = Dense.of(weights)
    # Buffers that the state dict leaves out change, too.
    beside = [*model.buffers(), *affine_of(model)]
    copies = [(tensor, tensor.detach().clone()) for tensor in beside]
    with evaluation_mode(model):
        try:
            yield dense
        except BaseException:
            dense.put_back()
            with torch.no_grad():
                for tensor, before in copies:
                    tensor.copy_(before)
            raise

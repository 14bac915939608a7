"""The optimiser of distillation: Adam on one vector, for convolutions along turned axes.

Adam is Kingma and Ba's (arXiv 1412.6980); along the eigenvectors of the gradient's Kronecker
factors it is SOAP (Vyas et al., arXiv 2409.11321). Those of torch hold no mask and have no turned
axes, and step through a list of tensors where one vector does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qprune.network.weights import Weights

# Largest side of a matrix that is turned, and steps between two turns.
_TURNED, _TURNS = 1024, 20
# Of the rate of weights, for BatchNorm's scales and shifts.
_BESIDE = 0.2


@dataclass(eq=False)
class Adam:
    """Adam over the vector of all targeted weights; pruned ones stay zero.

    Small steps would be lost to rounding in half precision: they are taken in float32. For
    convolutions the second moments are those along the axes of the gradient's own Kronecker
    factors.

    Attributes:
        values: the weights, then what moves beside them, shape (M,).
        rates: largest step of each, zero where pruned.
        mean, square: first moments, and second ones along the axes.
        axes: of some weights, with their part of the vector.
    """

    values: Tensor
    rates: Tensor
    mean: Tensor
    square: Tensor
    axes: list[tuple[slice, _Axes]]
    steps: int = 0
    decay: tuple[float, float] = (0.9, 0.95)

    @classmethod
    def at(
        cls, began: Tensor, layers: Weights, kept: Tensor, others: Sequence[Tensor], rate: float
    ) -> Adam:
        """At ``began`` (N,) and ``others``, to move by ``rate`` times the size of kept weights."""
        began = began.to(torch.promote_types(began.dtype, torch.float32))
        pairs = zip(layers.split(began), layers.split(kept), strict=True)
        rates = [rate * _size(part, mask) * mask.to(part) for part, mask in pairs]
        beside = [tensor.detach().flatten().to(began) for tensor in others]
        # Few numbers, in which all samples have a part. Shifts may be zero: they follow scales.
        for scale in beside[::2]:
            length = _BESIDE * rate * _size(scale, torch.ones_like(scale))
            rates += [length.expand_as(scale)] * 2
        values = torch.cat([began, *beside])
        axes = [
            (
                slice(layer.offset, layer.end),
                _Axes.of(layer.shape[0], values[layer.offset : layer.end]),
            )
            for layer in layers
            if len(layer.shape) > 2
        ]
        zero = torch.zeros_like(values)
        return cls(values, torch.cat(rates), zero, zero.clone(), axes)

    def step(self, gradient: Tensor, share: float) -> None:
        """One step along ``gradient`` (M,), at a share of the rates."""
        first, second = self.decay
        # An entry that is not finite moves nothing; the judge sees what comes of it.
        gradient = torch.where(self.rates > 0, gradient.to(self.values), 0.0).nan_to_num(0, 0, 0)
        self.mean.lerp_(gradient, 1 - first)
        for part, axes in self.axes:
            axes.turn(gradient[part], self.steps)
        self.steps += 1
        turned = self._along(gradient, _Axes.onto)
        self.square.mul_(second).addcmul_(turned, turned, value=1 - second)
        length = (self.square / (1 - second**self.steps)).sqrt_().add_(1e-8)
        move = self._along(self._along(self.mean, _Axes.onto) / length, _Axes.back)
        self.values.addcmul_(move, self.rates, value=-share / (1 - first**self.steps))

    def _along(self, vector: Tensor, turn: Callable[[_Axes, Tensor], Tensor]) -> Tensor:
        """The vector with some parts in other coordinates."""
        if not self.axes:
            return vector
        turned = vector.clone()
        for part, axes in self.axes:
            turned[part] = turn(axes, vector[part])
        return turned


@dataclass(eq=False)
class _Axes:
    """Axes of a matrix' gradients: eigenvectors of the means of G G' and of G' G.

    A side of more than `_TURNED` keeps its own axes: their eigenvectors would cost too much.

    Attributes:
        sides: per turned side its number, the mean, and the eigenvectors.
        rows: of the matrix.
    """

    sides: dict[int, tuple[Tensor, Tensor]]
    rows: int

    @classmethod
    def of(cls, rows: int, like: Tensor) -> _Axes:
        """Those of a matrix with this number of rows and the entries of ``like``, not known yet."""
        lengths = {0: rows, 1: len(like) // rows}
        found = {
            side: (like.new_zeros(length, length), torch.eye(length).to(like))
            for side, length in lengths.items()
            if length <= _TURNED
        }
        return cls(found, rows)

    def turn(self, gradient: Tensor, step: int) -> None:
        """Take up another gradient; now and then turn the axes by a step of the power method."""
        matrix = gradient.view(self.rows, -1)
        for side, (mean, vectors) in self.sides.items():
            product = matrix @ matrix.T if side == 0 else matrix.T @ matrix
            if not torch.isfinite(product).all():
                continue
            mean.lerp_(product, 0.05 if step else 1.0)
            if step == 0:
                vectors.copy_(torch.linalg.eigh(mean)[1])
            elif step % _TURNS == 0:
                vectors.copy_(torch.linalg.qr(mean @ vectors)[0])

    def onto(self, vector: Tensor) -> Tensor:
        """In coordinates along the axes."""
        matrix = vector.view(self.rows, -1)
        for side, (_, vectors) in self.sides.items():
            matrix = vectors.T @ matrix if side == 0 else matrix @ vectors
        return matrix.flatten()

    def back(self, vector: Tensor) -> Tensor:
        """From coordinates along the axes."""
        matrix = vector.view(self.rows, -1)
        for side, (_, vectors) in self.sides.items():
            matrix = vectors @ matrix if side == 0 else matrix @ vectors.T
        return matrix.flatten()


def _size(weights: Tensor, kept: Tensor) -> Tensor:
    """Return the root mean square of the kept weights."""
    return (weights.square().sum() / kept.sum().clamp(min=1)).sqrt()

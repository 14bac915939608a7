"""One use of one layer in one batch: what went in, and what the loss makes of what came out.

A per-sample weight gradient is a sum over tokens (positions, for a convolution) of products of
the two. Each kind of layer knows how to form those sums for all weights or for a few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from qprune.errors import CalibrationError
from qprune.layers import Layer

# Intermediate products are cut into pieces of at most this many numbers.
_PIECE_FLOATS = 1 << 24
# Per-sample gradients of a whole layer cost a matrix product; gathering a column costs about
# this many times more than one of the product's.
_GATHER_COST = 16


class Call(Protocol):
    """What a trace holds of one use of a layer."""

    @property
    def inputs(self) -> Tensor:
        """What went in, one sample a row."""
        ...

    @property
    def deltas(self) -> Tensor:
        """Derivative of every sample's loss by what came out, one sample a row."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the weight."""
        ...

    @property
    def floats_per_sample(self) -> int:
        """Numbers that `gradients` makes on its way, per sample."""
        ...

    def split(self, floats_per_sample: int) -> Sequence[Call]:
        """The call in pieces of consecutive samples, by what one sample takes."""
        ...

    def gradients(self) -> Tensor:
        """Per-sample weight gradients, shape (m, rows, cols)."""
        ...

    def squares(self) -> Tensor:
        """Sum over samples of squared per-sample gradients, shape (rows, cols)."""
        ...

    def columns(self, local: Tensor) -> Tensor:
        """Per-sample gradients at flat positions ``local`` (k,) of the weight, shape (m, k)."""
        ...

    def input_squares(self) -> Tensor:
        """Sum over samples and tokens of every weight's squared input, shape (rows, cols)."""
        ...


@dataclass(frozen=True, eq=False)
class LinearCall:
    """A Linear: inputs (m, tokens, cols), deltas (m, tokens, rows)."""

    inputs: Tensor
    deltas: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the weight."""
        return self.deltas.shape[-1], self.inputs.shape[-1]

    def gradients(self) -> Tensor:
        return self.deltas.transpose(-1, -2) @ self.inputs

    def squares(self) -> Tensor:
        if self.inputs.shape[1] == 1:
            return (self.deltas[:, 0] ** 2).T @ self.inputs[:, 0] ** 2
        return sum_of_squares([self])

    def columns(self, local: Tensor) -> Tensor:
        rows, cols = self.shape
        row, col = local // cols, local % cols
        if self.inputs.shape[1] == 1:
            return self.deltas[:, 0, row] * self.inputs[:, 0, col]
        if local.numel() * _GATHER_COST > rows * cols:
            pieces = self.split(self.floats_per_sample)
            return torch.cat([piece.gradients().flatten(1)[:, local] for piece in pieces])
        return torch.cat(
            [
                torch.einsum("mtk,mtk->mk", piece.deltas[..., row], piece.inputs[..., col])
                for piece in self.split(self.inputs.shape[1] * local.numel())
            ]
        )

    def input_squares(self) -> Tensor:
        rows, _ = self.shape
        return self.inputs.double().square().sum((0, 1)).expand(rows, -1)

    @property
    def floats_per_sample(self) -> int:
        rows, cols = self.shape
        return rows * cols

    def split(self, floats_per_sample: int) -> list[LinearCall]:
        return [LinearCall(*pair) for pair in _pieces(self.inputs, self.deltas, floats_per_sample)]


@dataclass(frozen=True, eq=False)
class ConvCall:
    """A Conv2d: padded inputs (m, images, channels, h, w), deltas (m, images, rows, oh, ow).

    What the kernel sees is kept as a view of the inputs and spelled out piece by piece only.
    """

    inputs: Tensor
    deltas: Tensor
    conv: nn.Conv2d

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the weight."""
        return self.conv.out_channels, self.conv.weight[0].numel()

    def gradients(self) -> Tensor:
        groups = self.conv.groups
        patches = self._patches().unflatten(2, (groups, -1)).permute(0, 2, 3, 4, 5, 1, 6, 7)
        deltas = self.deltas.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4, 5)
        return (deltas.flatten(3) @ patches.flatten(5).flatten(2, 4).transpose(-1, -2)).flatten(
            1, 2
        )

    def squares(self) -> Tensor:
        return sum_of_squares([self])

    def columns(self, local: Tensor) -> Tensor:
        rows, cols = self.shape
        if local.numel() * _GATHER_COST > rows * cols:
            pieces = self.split(self.floats_per_sample)
            return torch.cat([piece.gradients().flatten(1)[:, local] for piece in pieces])
        kh, kw = self.conv.kernel_size
        row, channel = local // cols, local % cols // (kh * kw)
        channel = channel + row // (rows // self.conv.groups) * (cols // (kh * kw))
        y, x = local // kw % kh, local % kw
        parts = []
        for piece in self.split(self.deltas[0, :, 0].numel() * local.numel()):
            seen, deltas = piece._patches()[:, :, channel, y, x], piece.deltas[:, :, row]
            parts.append(torch.einsum("mfkhw,mfkhw->mk", deltas, seen))
        return torch.cat(parts)

    def input_squares(self) -> Tensor:
        squares = ConvCall(self.inputs.double().square(), self.deltas, self.conv)
        per_input = squares._patches().sum((0, 1, 5, 6)).view(self.conv.groups, 1, -1)
        rows = self.conv.out_channels // self.conv.groups
        return per_input.expand(-1, rows, -1).flatten(0, 1)

    @property
    def floats_per_sample(self) -> int:
        kh, kw = self.conv.kernel_size
        rows, cols = self.shape
        seen = self.inputs.shape[2] * kh * kw * self.deltas[0, :, 0].numel()
        return max(seen, rows * cols)

    def split(self, floats_per_sample: int) -> list[ConvCall]:
        pairs = _pieces(self.inputs, self.deltas, floats_per_sample)
        return [ConvCall(inputs, deltas, self.conv) for inputs, deltas in pairs]

    def _patches(self) -> Tensor:
        """What each kernel position sees, a view (m, images, channels, kh, kw, oh, ow)."""
        (kh, kw), (dy, dx), (sy, sx) = (
            self.conv.kernel_size,
            self.conv.dilation,
            self.conv.stride,
        )
        m, f, c, h, w = self.inputs.stride()
        return self.inputs.as_strided(
            (*self.inputs.shape[:3], kh, kw, *self.deltas.shape[3:]),
            (m, f, c, h * dy, w * dx, h * sy, w * sx),
            self.inputs.storage_offset(),
        )


def make_call(layer: Layer, inputs: Tensor, deltas: Tensor, num_samples: int) -> Call:
    """The call of a layer from its raw inputs and the gradient of its raw outputs.

    Raises:
        CalibrationError: the first dimension is not the sample.
    """
    if len(inputs) % num_samples:
        raise CalibrationError(
            f"layer {layer.name!r} got inputs of shape {tuple(inputs.shape)} for {num_samples} "
            "samples; the first dimension must be the sample"
        )
    if isinstance(layer.module, nn.Conv2d):
        conv = layer.module
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padded = functional.pad(inputs, conv._reversed_padding_repeated_twice, mode=mode)
        by_sample = (num_samples, -1)
        return ConvCall(
            padded.contiguous().unflatten(0, by_sample), deltas.unflatten(0, by_sample), conv
        )
    return LinearCall(
        inputs.reshape(num_samples, -1, layer.cols), deltas.reshape(num_samples, -1, layer.rows)
    )


def sum_of_squares(calls: Sequence[Call]) -> Tensor:
    """Sum over samples of squared gradients of a layer used once or more, (rows, cols)."""
    floats = max(call.floats_per_sample for call in calls)
    total = torch.tensor(0.0)
    for pieces in zip(*(call.split(floats) for call in calls), strict=True):
        gradients = [piece.gradients() for piece in pieces]
        joined = gradients[0] if len(gradients) == 1 else torch.stack(gradients).sum(0)
        total = total + joined.square_().sum(0)
    return total


def _pieces(
    inputs: Tensor, deltas: Tensor, floats_per_sample: int
) -> Iterable[tuple[Tensor, Tensor]]:
    size = max(1, _PIECE_FLOATS // max(1, floats_per_sample))
    return zip(inputs.split(size), deltas.split(size), strict=True)

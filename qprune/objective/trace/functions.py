"""Uses of a targeted tensor in one batch: inputs, and derivatives of the loss by the outputs.

A per-sample weight gradient is a sum over tokens (positions, for a convolution) of products of
the two. Each kind of use forms those sums for all weights or for a few. Where a
tensor is used in no way listed here, its gradients are `GivenCall`s: autograd's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight

# Intermediate products are cut into pieces of at most this many numbers.
_PIECE_FLOATS = 1 << 24
# Per-sample gradients of a whole layer cost a matrix product; gathering one column costs about
# this many times as much as one column of the product.
_GATHER_COST = 16


class Call(Protocol):
    """Record of one use of a tensor in a trace."""

    @property
    def num_floats(self) -> int:
        """Count of numbers held in memory."""
        ...

    @property
    def positions(self) -> int:
        """Number of positions per sample at which a weight is used: tokens, or image positions."""
        ...

    @property
    def floats_per_sample(self) -> int:
        """Count of intermediate numbers that `gradients` makes per sample."""
        ...

    def split(self, floats_per_sample: int) -> Sequence[Call]:
        """Return the call in pieces of consecutive samples, by the numbers per sample."""
        ...

    def gradients(self) -> Tensor:
        """Return per-sample gradients in the tensor's order, (m, size) or (m, rows, cols)."""
        ...

    def squares(self) -> Tensor:
        """Return the sum over samples of squared gradients, in the tensor's own order."""
        ...

    def columns(self, local: Tensor) -> Tensor:
        """Return per-sample gradients at flat positions ``local`` (k,), shape (m, k)."""
        ...

    def input_squares(self) -> Tensor | None:
        """Return the sum over samples and tokens of squared inputs, in the tensor's order.

        None where the input is not known.
        """
        ...


@dataclass(frozen=True, eq=False)
class LinearCall:
    """A matrix product: inputs (m, tokens, cols), deltas (m, tokens, rows)."""

    inputs: Tensor
    deltas: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the weight."""
        return self.deltas.shape[-1], self.inputs.shape[-1]

    @property
    def num_floats(self) -> int:
        return self.inputs.numel() + self.deltas.numel()

    @property
    def positions(self) -> int:
        return self.inputs.shape[1]

    @property
    def taken(self) -> Tensor:
        """Inputs of the product, shape (m, tokens, inputs)."""
        return self.inputs

    @property
    def felt(self) -> Tensor:
        """Derivatives of the loss by what came out, shape (m, tokens, outputs)."""
        return self.deltas

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
        pairs = _pieces(self.inputs, self.deltas, floats_per_sample)
        return [type(self)(*pair) for pair in pairs]


@dataclass(frozen=True, eq=False)
class TurnedCall(LinearCall):
    """A product with a tensor stored as (inputs, outputs), as GPT-2's Conv1D stores it.

    Its gradient is the transpose of a Linear's: the roles of inputs and deltas are exchanged, so
    ``inputs`` holds the derivatives by the results and ``deltas`` what went in.
    """

    @property
    def taken(self) -> Tensor:
        return self.deltas

    @property
    def felt(self) -> Tensor:
        return self.inputs

    def input_squares(self) -> Tensor:
        _, outputs = self.shape
        return self.deltas.double().square().sum((0, 1))[:, None].expand(-1, outputs)


@dataclass(frozen=True)
class Geometry:
    """A two-dimensional convolution: each pair is (along height, along width).

    Attributes:
        kernel, stride, padding, dilation: pairs; the padding is before and after alike, or
            "same" or "valid".
        groups: see `torch.nn.Conv2d`.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Padding: left, right, top, bottom."""
        if self.padding == "valid":
            return 0, 0, 0, 0
        if isinstance(self.padding, str):
            # The odd one goes after, as in torch.
            missing = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            (top, left), (down, right) = zip(*((n // 2, n - n // 2) for n in missing), strict=True)
            return left, right, top, down
        height, width = self.padding
        return width, width, height, height


@dataclass(frozen=True, eq=False)
class ConvCall:
    """A convolution: padded inputs (m, images, channels, h, w), deltas (m, images, rows, oh, ow).

    Patches are a view of the inputs, and are copied piece by piece only.
    """

    inputs: Tensor
    deltas: Tensor
    geometry: Geometry

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the weight."""
        kh, kw = self.geometry.kernel
        return self.deltas.shape[2], self.inputs.shape[2] // self.geometry.groups * kh * kw

    @property
    def num_floats(self) -> int:
        return self.inputs.numel() + self.deltas.numel()

    @property
    def positions(self) -> int:
        return self.deltas[0, :, 0].numel()

    def gradients(self) -> Tensor:
        groups = self.geometry.groups
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
        kh, kw = self.geometry.kernel
        row, channel = local // cols, local % cols // (kh * kw)
        channel = channel + row // (rows // self.geometry.groups) * (cols // (kh * kw))
        y, x = local // kw % kh, local % kw
        parts = []
        for piece in self.split(self.deltas[0, :, 0].numel() * local.numel()):
            seen, deltas = piece._patches()[:, :, channel, y, x], piece.deltas[:, :, row]
            parts.append(torch.einsum("mfkhw,mfkhw->mk", deltas, seen))
        return torch.cat(parts)

    def input_squares(self) -> Tensor:
        squares = ConvCall(self.inputs.double().square(), self.deltas, self.geometry)
        per_input = squares._patches().sum((0, 1, 5, 6)).view(self.geometry.groups, 1, -1)
        rows = self.shape[0] // self.geometry.groups
        return per_input.expand(-1, rows, -1).flatten(0, 1)

    @property
    def floats_per_sample(self) -> int:
        kh, kw = self.geometry.kernel
        rows, cols = self.shape
        seen = self.inputs.shape[2] * kh * kw * self.deltas[0, :, 0].numel()
        return max(seen, rows * cols)

    def split(self, floats_per_sample: int) -> list[ConvCall]:
        pairs = _pieces(self.inputs, self.deltas, floats_per_sample)
        return [ConvCall(inputs, deltas, self.geometry) for inputs, deltas in pairs]

    def _patches(self) -> Tensor:
        """Return the inputs by kernel position, a view (m, images, channels, kh, kw, oh, ow)."""
        (kh, kw), (dy, dx), (sy, sx) = (
            self.geometry.kernel,
            self.geometry.dilation,
            self.geometry.stride,
        )
        m, f, c, h, w = self.inputs.stride()
        return self.inputs.as_strided(
            (*self.inputs.shape[:3], kh, kw, *self.deltas.shape[3:]),
            (m, f, c, h * dy, w * dx, h * sy, w * sx),
            self.inputs.storage_offset(),
        )


@dataclass(frozen=True, eq=False)
class GivenCall:
    """Per-sample gradients as autograd gives them, shape (m, size): all uses of a tensor."""

    given: Tensor

    @property
    def num_floats(self) -> int:
        return self.given.numel()

    @property
    def positions(self) -> int:
        return 1

    @property
    def floats_per_sample(self) -> int:
        return self.given.shape[1]

    def split(self, floats_per_sample: int) -> list[GivenCall]:
        size = max(1, _PIECE_FLOATS // max(1, floats_per_sample))
        return [GivenCall(piece) for piece in self.given.split(size)]

    def gradients(self) -> Tensor:
        return self.given

    def squares(self) -> Tensor:
        pieces = self.split(self.floats_per_sample)
        return torch.stack([piece.given.square().sum(0) for piece in pieces]).sum(0)

    def columns(self, local: Tensor) -> Tensor:
        return self.given[:, local]

    def input_squares(self) -> None:
        return None


class Use(Protocol):
    """Protocol of a torch function that uses a targeted tensor."""

    def rows(self, inputs: Tensor) -> int:
        """Return the length of the sample dimension, which may have others folded in."""
        ...

    def call(self, inputs: Tensor, deltas: Tensor, num_samples: int) -> Call:
        """Return the call, from the inputs and the derivatives by the outputs."""
        ...

    def gradient(self, inputs: Tensor, deltas: Tensor, shape: torch.Size) -> Tensor:
        """Return the batch's gradient by the weight, with the kernels that autograd uses."""
        ...


@dataclass(frozen=True)
class LinearUse:
    """Use by ``torch.nn.functional.linear(input, weight)``."""

    def rows(self, inputs: Tensor) -> int:
        return len(inputs) if inputs.ndim > 1 else 1

    def call(self, inputs: Tensor, deltas: Tensor, num_samples: int) -> LinearCall:
        return LinearCall(
            inputs.reshape(num_samples, -1, inputs.shape[-1]),
            deltas.reshape(num_samples, -1, deltas.shape[-1]),
        )

    def gradient(self, inputs: Tensor, deltas: Tensor, shape: torch.Size) -> Tensor:
        return deltas.reshape(-1, shape[0]).T @ inputs.reshape(-1, shape[1])


@dataclass(frozen=True)
class TurnedUse:
    """Use by ``torch.addmm(bias, input, weight)``."""

    def rows(self, inputs: Tensor) -> int:
        return len(inputs)

    def call(self, inputs: Tensor, deltas: Tensor, num_samples: int) -> TurnedCall:
        return TurnedCall(
            deltas.reshape(num_samples, -1, deltas.shape[-1]),
            inputs.reshape(num_samples, -1, inputs.shape[-1]),
        )

    def gradient(self, inputs: Tensor, deltas: Tensor, shape: torch.Size) -> Tensor:
        return inputs.T @ deltas


@dataclass(frozen=True)
class ConvUse:
    """Use by ``torch.conv1d`` or ``torch.conv2d``; conv1d is treated as conv2d of height one."""

    geometry: Geometry
    dimensions: int

    def rows(self, inputs: Tensor) -> int:
        return len(inputs) if inputs.ndim == self.dimensions + 2 else 1

    def call(self, inputs: Tensor, deltas: Tensor, num_samples: int) -> ConvCall:
        inputs, deltas = self._images(inputs), self._images(deltas)
        padded = functional.pad(inputs, self.geometry.pads)
        by_sample = (num_samples, -1)
        return ConvCall(
            padded.contiguous().unflatten(0, by_sample),
            deltas.unflatten(0, by_sample),
            self.geometry,
        )

    def gradient(self, inputs: Tensor, deltas: Tensor, shape: torch.Size) -> Tensor:
        geometry = self.geometry
        padding = geometry.padding
        if isinstance(padding, str):
            inputs, padding = functional.pad(inputs, geometry.pads), (0, 0)
        return conv2d_weight(
            inputs,
            shape,
            deltas,
            geometry.stride,  # pyright: ignore[reportArgumentType] (its stubs know single numbers)
            padding,  # pyright: ignore[reportArgumentType]
            geometry.dilation,  # pyright: ignore[reportArgumentType]
            geometry.groups,
        )

    def _images(self, tensor: Tensor) -> Tensor:
        if tensor.ndim < self.dimensions + 2:
            tensor = tensor[None]
        return tensor if self.dimensions == 2 else tensor.unsqueeze(-2)


@dataclass(frozen=True)
class Seen:
    """Call of a torch function with a tensor that may be targeted.

    Attributes:
        weight: the tensor.
        inputs: the tensor that the weight is applied to.
        use: the kind of use.
    """

    weight: Any
    inputs: Tensor
    use: Use


def seen(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Seen | None:
    """Return the use that a call of ``function`` makes of a weight; None if of no known kind."""
    read = _FUNCTIONS.get(function)
    return None if read is None else read(*args, **kwargs)


def _linear(input: Tensor, weight: Any, bias: Any = None) -> Seen:
    return Seen(weight, input, LinearUse())


def _addmm(input: Any, mat1: Tensor, mat2: Any, *, beta: Any = 1, alpha: Any = 1, out: Any = None):
    return Seen(mat2, mat1, TurnedUse()) if alpha == 1 and out is None else None


def _conv1d(
    input: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Seen:
    (step,), (apart,) = _numbers(stride, 1), _numbers(dilation, 1)
    pads = padding if isinstance(padding, str) else (0, *_numbers(padding, 1))
    geometry = Geometry((1, weight.shape[2]), (1, step), pads, (1, apart), groups)  # type: ignore
    return Seen(weight, input, ConvUse(geometry, 1))


def _conv2d(
    input: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Seen:
    pads = padding if isinstance(padding, str) else _numbers(padding, 2)
    geometry = Geometry(
        tuple(weight.shape[2:]),
        _numbers(stride, 2),  # type: ignore
        pads,  # type: ignore
        _numbers(dilation, 2),  # type: ignore
        groups,
    )
    return Seen(weight, input, ConvUse(geometry, 2))


def _numbers(value: Any, length: int) -> tuple[int, ...]:
    """Return one number for each dimension."""
    given = tuple(value) if isinstance(value, Sequence) else (value,)
    return given * length if len(given) == 1 else given


_FUNCTIONS: dict[Any, Callable[..., Seen | None]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,
    torch.conv1d: _conv1d,
    torch.conv2d: _conv2d,
}


def sum_of_squares(calls: Sequence[Call]) -> Tensor:
    """Return the sum over samples of squared gradients, over all uses of a tensor, (rows, cols)."""
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

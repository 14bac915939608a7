"""Which tensors are pruned, and one flat index over all of them.

Every targeted weight is seen as a matrix (outputs, inputs): a Linear's as it is, a Conv2d's
with its input channels and kernel positions flattened. Layers follow one another in module
order, each row by row, so that one integer 0..N-1 names any weight of the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from qprune.errors import ImpossibleRequestError, NonFiniteError, UnsupportedLayerError
from qprune.sharding import is_sharded, whole, write_elements, write_rows

SUPPORTED = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True, eq=False)
class Layer:
    """One targeted weight.

    Attributes:
        name: the module's name in the model ("" for the model itself).
        module: the Linear or Conv2d.
        offset: flat index of its first weight.
    """

    name: str
    module: nn.Linear | nn.Conv2d
    offset: int

    @property
    def parameter_name(self) -> str:
        """The weight's name in the model's state dict."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return self.module.weight.shape[0]

    @property
    def cols(self) -> int:
        """Number of inputs that each output has (per group, times kernel positions)."""
        return self.module.weight.shape[1:].numel()

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.module.weight.numel()

    @property
    def end(self) -> int:
        """One past the flat index of the last weight."""
        return self.offset + self.size


@dataclass(frozen=True, eq=False)
class Layers(Sequence[Layer]):
    """All targeted weights, in module order."""

    items: tuple[Layer, ...]

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def size(self) -> int:
        """Number of targeted weights N."""
        return sum(layer.size for layer in self.items)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.items[0].module.weight.device

    @property
    def sharded(self) -> bool:
        """Whether the weights are spread over processes (`qprune.sharding`)."""
        return any(is_sharded(layer.module.weight) for layer in self)

    def read(self) -> Tensor:
        """All weights as one new vector, shape (N,), float32 or what holds them exactly."""
        weights = [whole(layer.module.weight.detach()).reshape(-1) for layer in self]
        return torch.cat([w.to(torch.promote_types(w.dtype, torch.float32)) for w in weights])

    def write(self, values: Tensor) -> None:
        """Set all weights from a vector of shape (N,)."""
        with torch.no_grad():
            for layer, part in zip(self, self.split(values), strict=True):
                weight = layer.module.weight
                if is_sharded(weight):
                    write_rows(weight, part.view(weight.shape))
                else:
                    weight.copy_(part.view_as(weight))

    def write_at(self, indices: Tensor, values: Tensor) -> None:
        """Set the weights at flat ``indices`` (k,) to ``values`` (k,); costs O(k), not O(N)."""
        with torch.no_grad():
            for layer, where, local in self.locate(indices):
                weight = layer.module.weight
                positions = torch.unravel_index(local, weight.shape)
                if is_sharded(weight):
                    write_elements(weight, positions, values[where])
                else:
                    weight[positions] = values[where].to(weight.dtype)

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """A vector over all weights, cut into one view per layer."""
        return vector.split([layer.size for layer in self])

    def locate(self, indices: Tensor) -> list[tuple[Layer, Tensor, Tensor]]:
        """Per layer touched: (layer, positions in ``indices``, flat indices within the layer)."""
        touched = []
        for layer in self:
            where = torch.nonzero((indices >= layer.offset) & (indices < layer.end))[:, 0]
            if where.numel():
                touched.append((layer, where, indices[where] - layer.offset))
        return touched

    def count_by_layer(self, indices: Tensor) -> dict[str, int]:
        """How many of ``indices`` lie in each layer."""
        return {layer.name: where.numel() for layer, where, _ in self.locate(indices)}


def find_layers(
    model: nn.Module,
    targets: Sequence[str] = ("Linear", "Conv2d"),
    ignore: Sequence[str] = (),
) -> Layers:
    """The weights that ``targets`` name and ``ignore`` does not.

    Args:
        model: any module.
        targets: class names, module names, or ``re:`` patterns matched against the full name.
        ignore: the same, taken away again.

    Raises:
        ImpossibleRequestError: nothing is targeted, a targeted weight is tied to another, or
            it is not on the CPU.
        UnsupportedLayerError: a target names a module that has no Linear or Conv2d weight, or
            one whose weight is parametrized.
        NonFiniteError: a targeted weight holds NaN or Inf.
    """
    items: list[Layer] = []
    offset = 0
    for name, module in model.named_modules():
        if not is_named(name, module, targets) or is_named(name, module, ignore):
            continue
        items.append(Layer(name, _supported(name, module), offset))
        offset = items[-1].end
    if not items:
        raise ImpossibleRequestError(
            f"the model has no weights to prune: targets={list(targets)} and "
            f"ignore={list(ignore)} leave no Linear or Conv2d"
        )
    layers = Layers(tuple(items))
    _refuse_other_devices(layers)
    _refuse_tied(model, layers)
    _refuse_non_finite(layers)
    return layers


def is_named(name: str, module: nn.Module, patterns: Sequence[str]) -> bool:
    """Whether a pattern is the module's class name or name, or a ``re:`` that matches its name."""
    for pattern in patterns:
        if pattern.startswith("re:"):
            if re.fullmatch(pattern[3:], name):
                return True
        elif pattern in (name, _class_name(module)):
            return True
    return False


def _class_name(module: nn.Module) -> str:
    """Of the class; FSDP makes a Linear an FSDPLinear."""
    return type(module).__name__.removeprefix("FSDP")


def _supported(name: str, module: nn.Module) -> nn.Linear | nn.Conv2d:
    if not isinstance(module, SUPPORTED):
        raise UnsupportedLayerError(
            f"target {name!r} is a {type(module).__name__}; qprune prunes the weights of "
            "Linear and Conv2d: name those inside it, or add it to ignore"
        )
    if "weight" not in module._parameters:
        raise UnsupportedLayerError(
            f"the weight of {name!r} is computed from other parameters (a parametrization); "
            "remove that first, or add the layer to ignore"
        )
    return module


def _refuse_other_devices(layers: Layers) -> None:
    for layer in layers:
        device = layer.module.weight.device
        if device.type != "cpu":
            raise ImpossibleRequestError(
                f"the weight of {layer.name!r} is on {device}; this version prunes on the CPU: "
                "pass model.cpu()"
            )


def _refuse_tied(model: nn.Module, layers: Layers) -> None:
    owners: dict[int, str] = {}
    targeted = {_identity(layer.module.weight): layer for layer in layers}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layer = targeted.get(_identity(parameter))
        if layer is None or not parameter.numel():
            continue
        other = owners.setdefault(_identity(parameter), name)
        if other != name:
            raise ImpossibleRequestError(
                f"the weights {other!r} and {name!r} are one tied tensor; pruning one would "
                f"change the other: add {layer.name!r} to ignore, or untie them"
            )


def _identity(parameter: Tensor) -> int:
    """The same for tensors that share memory; a sharded one has none of its own."""
    return id(parameter) if is_sharded(parameter) else parameter.data_ptr()


def _refuse_non_finite(layers: Layers) -> None:
    for layer in layers:
        if not torch.isfinite(whole(layer.module.weight.detach())).all():
            raise NonFiniteError(
                f"the weight of {layer.name!r} holds NaN or Inf; repair the checkpoint first"
            )

"""One network of the zoo, and how its samples are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qprune.data.inputs import AnyInputs, Call, Inputs, by_arguments, mapped

NUM_SAMPLES = 24
Data = Callable[[torch.Generator], AnyInputs]


@dataclass(frozen=True)
class Entry:
    """A small network, what it is fed, and what is known of it.

    Attributes:
        name: of the network.
        build: makes it; the caller seeds torch.
        data: makes the inputs of NUM_SAMPLES samples.
        kind: of layer that the entry is about; no kind has more than three entries.
        path: of the targeted tensors' gradients: "fast" (from what goes in and comes out),
            "slow" (autograd's own), or "mixed" (some of each).
        targets: given to `find_weights`; None for the default.
        left_dense: patterns of the names of parameters of two or more dimensions that are no
            targets; every such parameter matches one of them.
        dtype: precision in which gradients are compared.
        tolerance: of that comparison, relative to the largest gradient.
        refused: pattern of the error, for what cannot be pruned.
    """

    name: str
    build: Callable[[], nn.Module]
    data: Data
    kind: str
    path: str = "fast"
    targets: tuple[str, ...] | None = None
    left_dense: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-5
    refused: str | None = None

    def make(self) -> nn.Module:
        """The network in evaluation mode, the same weights every time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build().eval()
            return model if self.refused else _unequal(model)

    def inputs(self) -> AnyInputs:
        """The samples, the same ones every time."""
        return self.data(torch.Generator().manual_seed(1))


def _unequal(model: nn.Module) -> nn.Module:
    """Zero and one tell nothing of a bias, a norm or a running mean: all of them moved."""
    named = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for name, tensor in named:
            moved = tensor.is_floating_point() and tensor.ndim == 1 and not _fixed(name)
            if moved and not torch.isnan(tensor).any():
                tensor.add_(0.2 * torch.rand(tensor.shape).to(tensor.dtype))
    return model


def _fixed(name: str) -> bool:
    """Vectors that other numbers are made of: spectral norms and rotary frequencies."""
    return name.rsplit(".", 1)[-1] in {"_u", "_v", "weight_u", "weight_v"} or "inv_freq" in name


class Net(nn.Module):
    """Named modules and parameters, and a function that calls them: run(net, *inputs)."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Data:
    """Standard normal numbers, (m, *shape)."""
    return lambda g: torch.randn(NUM_SAMPLES, *shape, generator=g).to(dtype)


def ids(*shape: int, below: int = 11) -> Data:
    """Token ids (m, *shape), 2 to below - 1: the first two often mean padding and the like."""
    return lambda g: torch.randint(2, below, (NUM_SAMPLES, *shape), generator=g)


def both(first: Data, second: Data, call: Call = by_arguments) -> Data:
    """Two inputs, by position."""
    return lambda g: Inputs((first(g), second(g)), call)


def named(**parts: Data) -> Data:
    """Inputs by keyword."""
    return lambda g: Inputs({name: part(g) for name, part in parts.items()})


def padding(length: int) -> Data:
    """An attention mask (m, length): 1 up to the sample's own length, at least 2."""

    def make(generator: torch.Generator) -> Tensor:
        lengths = torch.randint(2, length + 1, (NUM_SAMPLES, 1), generator=generator)
        return (torch.arange(length) < lengths).long()

    return make


def called_by(call: Call, data: Data) -> Data:
    """The same inputs, the model called by ``call``."""

    def make(generator: torch.Generator) -> Inputs:
        made = data(generator)
        return replace(made, call=call) if isinstance(made, Inputs) else Inputs(made, call)

    return make


def in_precision(inputs: AnyInputs, dtype: torch.dtype) -> AnyInputs:
    """Floating-point inputs in ``dtype``, others as they are."""
    return mapped(inputs, lambda x: x.to(dtype) if x.is_floating_point() else x)

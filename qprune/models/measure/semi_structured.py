"""2:4 sparse matrices on GPUs that multiply them: torch's semi-structured tensors.

The one sparsity pattern that hardware supports (NVIDIA Ampere and later): at most two non-zeros
in every four consecutive inputs, in half precision.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

#: Sizes of weights must be multiples of these (rows, columns) for the half-precision kernels.
_MULTIPLES = (32, 64)
_DTYPES = (torch.float16, torch.bfloat16)
#: Tolerated relative error of the logits in half precision.
_TOLERANCE = 0.05


def obstacle(model: nn.Module, mask: Mapping[str, Tensor], device: torch.device) -> str | None:
    """Return the reason why 2:4 kernels cannot be tried; None if they can."""
    if device.type != "cuda":
        return f"2:4 kernels need an NVIDIA GPU, this is {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere and has no 2:4 kernels"
    dtype = next(model.parameters()).dtype
    if dtype not in _DTYPES:
        return f"2:4 kernels take float16 and bfloat16, the weights are {dtype}; give --dtype"
    if not list(suitable_layers(model, mask)):
        return "no Linear layer has a 2:4 mask (prune with --mask-structure 2:4)"
    return None


def suitable_layers(
    model: nn.Module, mask: Mapping[str, Tensor]
) -> Iterator[tuple[str, nn.Linear]]:
    """Return the Linear layers whose masks are 2:4 and whose sizes suit the kernels."""
    for name, module in model.named_modules():
        kept = mask.get(f"{name}.weight")
        if isinstance(module, nn.Linear) and kept is not None and is_2_of_4(kept):
            rows, columns = kept.shape
            if rows % _MULTIPLES[0] == 0 and columns % _MULTIPLES[1] == 0:
                yield name, module


def is_2_of_4(kept: Tensor) -> bool:
    """Return True if every four consecutive inputs keep at most two; shape (outputs, inputs)."""
    if kept.ndim != 2 or kept.shape[1] % 4:
        return False
    return bool((kept.unflatten(1, (-1, 4)).sum(-1) <= 2).all())


def with_sparse_kernels(model: nn.Module, mask: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the model whose suitable layers use the 2:4 kernels."""
    from torch.sparse import to_sparse_semi_structured

    converted = copy.deepcopy(model)
    for _, layer in suitable_layers(converted, mask):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that this interface is a prototype.
            weight = to_sparse_semi_structured(layer.weight.detach())
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return converted


def disagreement(reference: Tensor, logits: Tensor) -> str | None:
    """Return the reason why the sparse kernels' logits are wrong; None if they agree."""
    error = (logits.double() - reference.double()).norm() / reference.double().norm()
    if not bool(error < _TOLERANCE):
        return f"the 2:4 kernels' logits differ from the dense kernels' by {100 * error:.1f} %"
    return None

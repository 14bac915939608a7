"""Weight matrices inside a model's blocks, independent of their module and layout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qprune.errors import ImpossibleRequestError, NonFiniteError, UnsupportedLayerError
from qprune.network.weights import is_named

logger = logging.getLogger(__name__)

#: Routers of a mixture of experts: small, and left dense as in the literature.
ROUTERS = r"re:.*\.(gate|router|shared_expert_gate)"


@dataclass(frozen=True, eq=False)
class Matrix:
    """Weight matrix with outputs in rows, inputs in columns.

    Attributes:
        name: the module's name, with the expert's number where experts share one tensor.
        parameter_name: the tensor's name in the model's state dict.
        module: the module that holds it.
        parameter: the tensor; of shape (rows, inputs), or (inputs, rows), or with experts first,
            or a convolution's, whose channels and kernel positions are its inputs.
        inputs_first: True if stored transposed, as in GPT-2's Conv1D.
        expert: index in a tensor of experts; None for a matrix of its own.
    """

    name: str
    parameter_name: str
    module: nn.Module
    parameter: nn.Parameter
    inputs_first: bool = False
    expert: int | None = None

    def view(self, tensor: Tensor) -> Tensor:
        """Return this matrix' part of a tensor shaped like the parameter, as (rows, inputs)."""
        part = tensor if self.expert is None else tensor[self.expert]
        return part.T if self.inputs_first else part.flatten(1)

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return self.view(self.parameter).shape[0]

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return self.view(self.parameter).shape[1]

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.rows * self.inputs

    @property
    def routed(self) -> bool:
        """True for an expert's matrix, whose tokens may differ before and after pruning."""
        return self.expert is not None or ".experts." in f".{self.name}."

    def read(self) -> Tensor:
        """Return the weights, a new tensor (rows, inputs) in the parameter's dtype."""
        return self.view(self.parameter).detach().clone()

    def write(self, values: Tensor) -> None:
        """Set the weights from (rows, inputs)."""
        with torch.no_grad():
            self.view(self.parameter).copy_(values)


def find_matrices(
    blocks: Sequence[tuple[str, nn.Module]],
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    *,
    convolutions: bool = False,
) -> list[list[Matrix]]:
    """Return the targeted matrices of every block, in module order.

    Args:
        blocks: (name in the model, module).
        targets: class names, module names or ``re:`` patterns; None for every Linear, Conv1D
            and tensor of experts but routers.
        ignore: patterns of the same kinds to leave out.
        convolutions: include those of Conv2d, which are not pruned layer by layer.

    Raises:
        UnsupportedLayerError: a target names a module without a supported matrix.
        ImpossibleRequestError: nothing is left to prune.
        NonFiniteError: a weight is NaN or Inf.
    """
    found: list[list[Matrix]] = []
    for block_name, block in blocks:
        inside: list[Matrix] = []
        for inner, module in block.named_modules():
            name = f"{block_name}.{inner}" if inner else block_name
            if is_named(name, module, ignore):
                continue
            if convolutions and isinstance(module, nn.Conv2d):
                if targets is None or is_named(name, module, targets):
                    inside.append(_single(name, module, inputs_first=False))
                continue
            if targets is None:
                if not is_named(name, module, (ROUTERS,)):
                    inside += _matrices_of(name, module)
            elif is_named(name, module, targets):
                inside += _demanded(name, module)
        found.append(inside)
    if not any(found):
        raise ImpossibleRequestError(
            f"no weights to prune: targets={targets and list(targets)} and ignore={list(ignore)} "
            "leave no Linear, Conv1D or experts inside the model's blocks"
        )
    for matrix in (m for inside in found for m in inside):
        if not bool(torch.isfinite(matrix.view(matrix.parameter)).all()):
            raise NonFiniteError(
                f"the weight of {matrix.name!r} holds NaN or Inf; repair the checkpoint first"
            )
    return found


def refuse_tied(model: nn.Module, matrices: Sequence[Matrix]) -> None:
    """Refuse targeted tensors that are tied to others; log the ties of other weights.

    Raises:
        ImpossibleRequestError: a targeted tensor has two names.
    """
    targeted = {id(matrix.parameter) for matrix in matrices}
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        if first == name:
            continue
        if id(parameter) in targeted:
            raise ImpossibleRequestError(
                f"the weights {first!r} and {name!r} are one tied tensor; pruning one would change "
                "the other: add one of them to ignore, or untie them"
            )
        logger.info("%s is tied to %s; both stay dense", name, first)


def log_left_dense(model: nn.Module, matrices: Sequence[Matrix]) -> None:
    """Log one line that names the large weights that are not pruned."""
    targeted = {id(matrix.parameter) for matrix in matrices}
    left = [
        name.removesuffix(".weight")
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in targeted
    ]
    if left:
        more = f" and {len(left) - 6} more" if len(left) > 6 else ""
        logger.info("left dense: %s%s", ", ".join(left[:6]), more)


def _matrices_of(name: str, module: nn.Module) -> list[Matrix]:
    """Return the matrices that a module itself holds."""
    if isinstance(module, nn.Linear):
        return [_single(name, module, inputs_first=False)]
    if type(module).__name__ == "Conv1D":
        return [_single(name, module, inputs_first=True)]
    if type(module).__name__.endswith("Experts"):
        return [
            Matrix(f"{name}.{key}.{expert}", f"{name}.{key}", module, parameter, False, expert)
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.ndim == 3
            for expert in range(len(parameter))
        ]
    return []


def _single(name: str, module: nn.Module, inputs_first: bool) -> Matrix:
    weight = module._parameters.get("weight")
    if weight is None:
        raise UnsupportedLayerError(
            f"the weight of {name!r} is computed from other parameters (a parametrization); "
            "remove that first, or add the layer to ignore"
        )
    if weight.is_meta or not weight.is_floating_point():
        raise UnsupportedLayerError(
            f"the weight of {name!r} is {'not loaded' if weight.is_meta else 'quantised'}; load "
            "the model in full, in float32, bfloat16 or float16"
        )
    return Matrix(name, f"{name}.weight", module, weight, inputs_first)


def _demanded(name: str, module: nn.Module) -> list[Matrix]:
    matrices = _matrices_of(name, module)
    if not matrices:
        raise UnsupportedLayerError(
            f"target {name!r} is a {type(module).__name__}; layer by layer, qprune prunes Linear, "
            "Conv1D and tensors of experts: name those inside it, or add it to ignore"
        )
    return matrices

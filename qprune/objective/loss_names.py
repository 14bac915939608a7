"""Losses by name or in torch's forms: ``"mse"``, ``nn.MSELoss()``, ``F.mse_loss``."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from qprune.data.outputs import IGNORED, Bernoulli, Classes, Kind, Real
from qprune.errors import ImpossibleRequestError
from qprune.objective.losses import DenseOutputs, Labels, Loss, PerSample

#: Names for ``loss=`` and ``--loss``.
LOSSES: Mapping[str, Loss] = {
    "dense": DenseOutputs(),
    "cross-entropy": Labels(Classes()),
    "mse": Labels(Real(), or_dense=True),
    "bce": Labels(Bernoulli(), or_dense=True),
}

_FUNCTIONS: tuple[tuple[Any, type[nn.Module]], ...] = (
    (functional.cross_entropy, nn.CrossEntropyLoss),
    (functional.nll_loss, nn.NLLLoss),
    (functional.mse_loss, nn.MSELoss),
    (functional.binary_cross_entropy, nn.BCELoss),
    (functional.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
)
#: For NLLLoss: log-softmax leaves log-probabilities unchanged.
_KINDS: Mapping[type[nn.Module], Kind] = {
    nn.CrossEntropyLoss: Classes(logits=True),
    nn.NLLLoss: Classes(logits=True),
    nn.MSELoss: Real(),
    nn.BCELoss: Bernoulli(logits=False),
    nn.BCEWithLogitsLoss: Bernoulli(logits=True),
}
_METHODS = (
    *("needs_labels", "has_distribution", "resolved"),
    *("per_sample", "sampled", "sketched", "fits", "refit"),
)


def as_loss(value: Any) -> Loss:
    """Return the loss for any accepted value of ``loss=``.

    Args:
        value: a `qprune.objective.losses.Loss`; a name in `LOSSES`; one of torch's loss modules,
            with its options, their class or their function; any callable (outputs, targets) ->
            losses of shape (m,). None = "dense".

    Raises:
        ImpossibleRequestError: no such name, or no loss.

    Example:
        >>> as_loss("mse").needs_labels, as_loss(None).needs_labels
        (True, False)
    """
    if value is None or isinstance(value, str):
        return _named(value or "dense")
    known = next((module for function, module in _FUNCTIONS if value is function), value)
    if isinstance(known, type):
        known = _instance(known)
    if hasattr(known, "per_sample"):
        return _complete(known)
    if isinstance(known, nn.Module):
        return _from_module(known)
    if callable(known):
        return cast(Loss, PerSample(cast(Any, known)))
    raise ImpossibleRequestError(
        f"loss must be one of {', '.join(map(repr, LOSSES))}, one of torch's losses, or "
        f"qprune.PerSample(function), not {value!r}"
    )


def _named(name: str) -> Loss:
    if name in LOSSES:
        return LOSSES[name]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), LOSSES, n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    raise ImpossibleRequestError(f"no loss named {name!r}{meant}; there are: {', '.join(LOSSES)}")


def _complete(loss: Any) -> Loss:
    missing = [name for name in _METHODS if not hasattr(loss, name)]
    if missing:
        raise ImpossibleRequestError(
            f"{type(loss).__name__} is no qprune.Loss: it has no {missing[0]}"
        )
    return cast(Loss, loss)


def _instance(kind: type) -> Any:
    try:
        return kind()
    except TypeError as error:
        raise ImpossibleRequestError(
            f"the loss {kind.__name__} cannot be made without arguments; pass an object of it"
        ) from error


def _from_module(module: nn.Module) -> Loss:
    """Return one of torch's losses with its options; exact curvature where it is a plain one."""
    reduction = getattr(module, "reduction", None)
    if reduction is None:
        return cast(Loss, PerSample(module))
    if reduction == "sum":
        raise ImpossibleRequestError(
            f"{type(module).__name__}(reduction='sum') has no part that is one sample's mean; "
            "leave reduction out, since a run takes the mean over samples"
        )
    ignored = getattr(module, "ignore_index", IGNORED)
    kind = _KINDS.get(type(module))
    special = any(getattr(module, name, None) is not None for name in ("weight", "pos_weight"))
    if kind is not None and not special and not getattr(module, "label_smoothing", 0.0):
        return Labels(kind, ignored, or_dense=not isinstance(kind, Classes))
    each = copy.deepcopy(module)
    each.reduction = "none"  # type: ignore[assignment]
    function = Unreduced(each, summed=reduction == "batchmean")
    return cast(Loss, PerSample(function, ignored=ignored))


@dataclass(frozen=True)
class Unreduced:
    """Torch's loss module with reduction "none", reduced sample by sample.

    Weights of classes and of outputs multiply, and are not divided by their sum as torch's mean
    over a batch is: a sample's loss must not depend on the others.

    Args:
        module: its ``reduction`` is "none".
        summed: sum over a sample's positions instead of the mean.
    """

    module: nn.Module
    summed: bool = False

    def __str__(self) -> str:
        return str(self.module)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses, shape (m,)."""
        module = self.module
        if any((w.dtype, w.device) != (outputs.dtype, outputs.device) for w in module.buffers()):
            module = copy.deepcopy(module).to(outputs)
        losses = module(outputs, targets).reshape(len(outputs), -1)
        ignored = getattr(self.module, "ignore_index", None)
        if self.summed:
            return losses.sum(1)
        if ignored is None or targets.is_floating_point():
            return losses.mean(1)
        return losses.sum(1) / (targets.reshape(losses.shape) != ignored).sum(1).clamp(min=1)

"""What is to be kept small: the loss of every sample, in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from qprune.errors import CalibrationError


class Loss(Protocol):
    """A loss per sample, smooth in the network's outputs.

    `needs_labels` says whether targets are labels; otherwise they are the dense outputs.
    """

    needs_labels: ClassVar[bool]

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample, shape (m,)."""
        ...

    def sampled(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of each sample against a target drawn from the outputs' own distribution."""
        ...

    def sketched(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Numbers, shape (m,), whose gradients' outer products average to the Gauss-Newton's.

        Sum_s grad grad' over random signs has the expectation sum_s J_s' C_s J_s, C_s the
        second derivative of the loss of sample s by the outputs.
        """
        ...

    def fits(self, *, values_move: bool) -> bool:
        """Whether `refit` does anything; ``values_move``: whether kept weights are compensated."""
        ...

    def refit(self, outputs: Tensor, targets: Tensor) -> Loss:
        """The loss with what it fits to the present outputs."""
        ...


def _classes_last(outputs: Tensor) -> Tensor:
    """Logits of classifiers (m, classes) and of language models (m, tokens, classes) alike.

    Raises:
        CalibrationError: there are no two classes to tell apart.
    """
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        raise CalibrationError(
            f"outputs of shape {tuple(outputs.shape)} are no logits over classes; "
            "for other outputs pass loss=PerSample(...)"
        )
    return outputs if outputs.ndim > 2 else outputs[:, None, :]


def draw_classes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One class per row of (..., classes) logits, by inverting the distribution function.

    Uniforms are drawn on the generator's device, so that the draw is the same on every device.
    """
    uniforms = torch.rand(logits.shape[:-1], generator=generator, device=generator.device)
    cumulative = logits.detach().double().softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniforms.to(cumulative)[..., None])[..., 0]
    return drawn.clamp(max=logits.shape[-1] - 1)


@dataclass(frozen=True)
class DenseOutputs:
    """KL(dense || pruned) of the output distributions: needs no labels, zero when dense.

    Args:
        scale: the pruned network's logits are multiplied by it before they are compared.
        fit_scale: refit ``scale`` (at least 1) whenever the loss is expanded; None means
            only where kept weights do not move. Such a network loses logit scale with every
            pruned weight; the argmax does not care, and without the refit most of the loss
            is about confidence.
    """

    needs_labels: ClassVar[bool] = False
    scale: float = 1.0
    fit_scale: bool | None = None

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        ours = _classes_last(self.scale * outputs).log_softmax(-1)
        dense = _classes_last(targets).log_softmax(-1)
        return (dense.exp() * (dense - ours)).sum(-1).flatten(1).mean(1)

    def sampled(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        logits = _classes_last(self.scale * outputs)
        drawn = draw_classes(logits, generator)
        # A sequence's loss is a mean over tokens; independent draws add up to the variance
        # of one, hence the root.
        tokens = logits.flatten(1, -2).shape[1]
        nll = functional.cross_entropy(
            logits.flatten(0, -2), drawn.flatten(), reduction="none"
        ).view(drawn.shape)
        return nll.flatten(1).sum(1) / tokens**0.5

    def sketched(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        logits = _classes_last(self.scale * outputs)
        shares = logits.detach().softmax(-1)
        # diag(p) - pp' = sum_c p_c (e_c - p)(e_c - p)'; a random sign per class makes one row
        # of the sum. A drawn label has the same mean, but of a confident network nearly all
        # draws are zero and a few are huge.
        signs = torch.randint(2, shares.shape, generator=generator, device=generator.device)
        root = shares.sqrt() * (2 * signs - 1).to(shares)
        rows = root - shares * root.sum(-1, keepdim=True)
        tokens = logits.flatten(1, -2).shape[1]
        return (logits * rows).flatten(1).sum(1) / tokens**0.5

    def fits(self, *, values_move: bool) -> bool:
        return not values_move if self.fit_scale is None else self.fit_scale

    def refit(self, outputs: Tensor, targets: Tensor) -> DenseOutputs:
        return replace(self, scale=_best_scale(outputs, targets))


def _best_scale(outputs: Tensor, targets: Tensor, limit: float = 64.0) -> float:
    """The factor in [1, limit] that minimises KL(dense || factor * outputs), by Newton.

    The loss is convex in the factor; the second derivative is the variance of the logits
    under the scaled distribution.
    """
    logits = outputs.double().flatten(0, -2)
    dense = targets.double().flatten(0, -2).softmax(-1)
    wanted = (dense * logits).sum(-1).mean().item()
    scale = 1.0
    for _ in range(50):
        ours = (scale * logits).softmax(-1)
        mean = (ours * logits).sum(-1, keepdim=True)
        slope = mean.mean().item() - wanted
        curvature = (ours * (logits - mean) ** 2).sum(-1).mean().item()
        step = slope / max(curvature, 1e-12)
        # Never more than a doubling: far from the minimum the curvature all but vanishes.
        updated = min(max(scale - step, 1.0, scale / 2), limit, 2 * scale)
        if abs(updated - scale) <= 1e-6 * scale:
            break
        scale = updated
    return scale


@dataclass(frozen=True)
class Labels:
    """Cross entropy against the labels of the data (classes; one a sample or one a token)."""

    needs_labels: ClassVar[bool] = True

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = _classes_last(outputs)
        shape = logits.shape[:-1]
        if targets.numel() != shape.numel():
            raise CalibrationError(
                f"labels of shape {tuple(targets.shape)} do not fit outputs of shape "
                f"{tuple(outputs.shape)}; pass one label a sample, or one a token"
            )
        try:
            nll = functional.cross_entropy(
                logits.flatten(0, -2), targets.flatten().long(), reduction="none"
            )
        except IndexError as error:
            raise CalibrationError(
                f"labels must be classes 0..{logits.shape[-1] - 1}, as the model has outputs; "
                f"they run from {targets.min():g} to {targets.max():g}"
            ) from error
        return nll.view(shape).flatten(1).mean(1)

    def sampled(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        return DenseOutputs().sampled(outputs, generator)

    def sketched(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        return DenseOutputs().sketched(outputs, generator)

    def fits(self, *, values_move: bool) -> bool:
        return False

    def refit(self, outputs: Tensor, targets: Tensor) -> Labels:
        return self


@dataclass(frozen=True)
class PerSample:
    """Any loss of the user's own.

    Args:
        function: (outputs, targets) -> losses of shape (m,), differentiable in the outputs.
        needs_labels: whether targets are the labels; otherwise they are the dense outputs.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    needs_labels: bool = True  # type: ignore[misc]

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self.function(outputs, targets)
        if losses.shape != (len(outputs),):
            raise CalibrationError(
                f"the loss must return one number per sample, shape ({len(outputs)},), "
                f"not {tuple(losses.shape)}; leave out the mean"
            )
        return losses

    def sampled(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        raise CalibrationError(
            "a loss of your own has no distribution to sample labels from; "
            "use curvature=EmpiricalFisher()"
        )

    def sketched(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        return self.sampled(outputs, generator)

    def fits(self, *, values_move: bool) -> bool:
        return False

    def refit(self, outputs: Tensor, targets: Tensor) -> PerSample:
        return self

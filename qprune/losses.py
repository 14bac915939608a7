"""What is to be kept small: the loss of every sample, in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.kinds import IGNORED, Classes, Kind
from qprune.recognise import Recognised, recognise


class Loss(Protocol):
    """A loss per sample, smooth in the network's outputs.

    `needs_labels` says whether targets are labels; otherwise they are the dense outputs.
    `has_distribution` says whether targets can be drawn: there are `sampled` and `sketched`.
    """

    needs_labels: ClassVar[bool]
    has_distribution: ClassVar[bool]

    def resolved(self, outputs: Tensor, labels: Tensor | None) -> Loss:
        """The loss with what it left open decided; asked once, before a run.

        Args:
            outputs: of the dense network on some samples, shape (m, ...).
            labels: of the same samples, shape (m, ...), where the data have any.

        Raises:
            CalibrationError, ImpossibleRequestError: it does not suit them.
        """
        ...

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample, shape (m,)."""
        ...

    def sampled(
        self, outputs: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        """Loss of each sample against a target drawn from the outputs' own distribution.

        What is drawn does not depend on ``targets``; they say only which positions count.
        """
        ...

    def sketched(
        self, outputs: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        """Numbers, shape (m,), whose gradients' outer products average to the Gauss-Newton's.

        Sum_s grad grad' over random signs has the expectation sum_s J_s' C_s J_s, C_s the
        second derivative of the loss of sample s by the outputs. Of ``targets`` see `sampled`.
        """
        ...

    def fits(self, *, values_move: bool) -> bool:
        """Whether `refit` does anything; ``values_move``: whether kept weights are compensated."""
        ...

    def refit(self, outputs: Tensor, targets: Tensor) -> Loss:
        """The loss with what it fits to the present outputs."""
        ...


@dataclass(frozen=True)
class DenseOutputs:
    """KL(dense || pruned) of the outputs' distributions: needs no labels, zero when dense.

    Args:
        scale: the pruned network's logits are multiplied by it before they are compared.
        fit_scale: refit ``scale`` (at least 1) whenever the loss is expanded; None means
            only where kept weights do not move. Such a network loses logit scale with every
            pruned weight; the argmax does not care, and without the refit most of the loss
            is about confidence. Only classes have such a scale.
        kind: what the outputs are (`qprune.kinds`); None = by sight (`qprune.recognise`),
            logits over classes where nobody looks. Of real numbers it is the squared distance.
        reason: what gave the kind away.
    """

    needs_labels: ClassVar[bool] = False
    has_distribution: ClassVar[bool] = True
    scale: float = 1.0
    fit_scale: bool | None = None
    kind: Kind | None = None
    reason: str = field(default="", repr=False, compare=False)

    def __str__(self) -> str:
        return f"divergence from the dense outputs, as {self._kind}{_in_brackets(self.reason)}"

    @property
    def _kind(self) -> Kind:
        return Classes() if self.kind is None else self.kind

    def resolved(self, outputs: Tensor, labels: Tensor | None) -> DenseOutputs:
        found = _recognised(self.kind, outputs, labels)
        return replace(self, kind=found.kind, reason=found.reason)

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        kind = self._kind
        return kind.divergence(self.scale * kind.natural(outputs), kind.natural(targets))

    def sampled(
        self, outputs: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        return self._kind.sampled(self.scale * self._kind.natural(outputs), generator, None)

    def sketched(
        self, outputs: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        return self._kind.sketched(self.scale * self._kind.natural(outputs), generator, None)

    def fits(self, *, values_move: bool) -> bool:
        wanted = not values_move if self.fit_scale is None else self.fit_scale
        return wanted and self._kind.scales

    def refit(self, outputs: Tensor, targets: Tensor) -> DenseOutputs:
        natural = self._kind.natural
        return replace(self, scale=_best_scale(natural(outputs), natural(targets)))


def _recognised(kind: Kind | None, outputs: Tensor, labels: Tensor | None) -> Recognised:
    """The kind as it was asked, or by sight."""
    if kind is not None:
        return Recognised(kind.seen(outputs, labels), "as asked")
    found = recognise(outputs, labels)
    return replace(found, reason=f"by sight: {found.reason}; loss= or --loss chooses another")


def _in_brackets(reason: str) -> str:
    return f" ({reason})" if reason else ""


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
    """Loss against the labels of the data: cross entropy, squared error, or binary cross entropy.

    Args:
        kind: what the outputs are (`qprune.kinds`); None = by sight (`qprune.recognise`),
            logits over classes where nobody looks. Labels are then classes, one a position.
        ignored: whole labels of this value do not count.
        or_dense: without labels the outputs are compared with the dense ones instead.
        reason: what gave the kind away.
    """

    needs_labels: ClassVar[bool] = True
    has_distribution: ClassVar[bool] = True
    kind: Kind | None = None
    ignored: int = IGNORED
    or_dense: bool = False
    reason: str = field(default="", repr=False, compare=False)

    def __str__(self) -> str:
        return f"loss against the labels, outputs as {self._kind}{_in_brackets(self.reason)}"

    @property
    def _kind(self) -> Kind:
        return Classes() if self.kind is None else self.kind

    def resolved(self, outputs: Tensor, labels: Tensor | None) -> DenseOutputs | Labels:
        if labels is None and not self.or_dense:
            return self  # The run refuses, and says what it misses.
        found = _recognised(self.kind, outputs, labels)
        if labels is None:
            return DenseOutputs(kind=found.kind, reason=f"there are no labels; {found.reason}")
        return replace(self, kind=found.kind, reason=found.reason)

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._kind.against(outputs, targets, self.ignored)

    def sampled(
        self, outputs: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        counted = self._counted(targets)
        return self._kind.sampled(self._kind.natural(outputs), generator, counted)

    def sketched(
        self, outputs: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        counted = self._counted(targets)
        return self._kind.sketched(self._kind.natural(outputs), generator, counted)

    def _counted(self, targets: Tensor | None) -> Tensor | None:
        return None if targets is None else self._kind.counted(targets, self.ignored)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Which of the labels that count are predicted, flat; None where there is no right."""
        return self._kind.right(outputs, targets, self.ignored)

    def fits(self, *, values_move: bool) -> bool:
        return False

    def refit(self, outputs: Tensor, targets: Tensor) -> Labels:
        return self


@dataclass(frozen=True)
class PerSample:
    """Any loss of the user's own; the curvature is then the empirical Fisher matrix.

    Args:
        function: (outputs, targets) -> losses of shape (m,), differentiable in the outputs.
        needs_labels: whether targets are the labels; otherwise they are the dense outputs.
        ignored: samples with no whole label but this are left out; None = there is none such.
        curved: whether it has a second derivative that is not zero; found before the run.
    """

    has_distribution: ClassVar[bool] = False
    function: Callable[[Tensor, Tensor], Tensor]
    needs_labels: bool = True  # type: ignore[misc]
    ignored: int | None = None
    curved: bool = True

    def __str__(self) -> str:
        name = getattr(self.function, "__name__", None) or str(self.function)
        return f"{name} of {'labels' if self.needs_labels else 'the dense outputs'}"

    def resolved(self, outputs: Tensor, labels: Tensor | None) -> PerSample:
        targets = labels if self.needs_labels else outputs
        if targets is None:
            return self
        try:
            curved = self._is_curved(outputs, targets)
        except CalibrationError:
            raise
        except Exception as error:
            raise ImpossibleRequestError(
                f"the loss raised {type(error).__name__} on outputs of shape "
                f"{tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}, "
                f"{targets.dtype}: {' '.join(str(error).split())}"
            ) from error
        return replace(self, curved=curved)

    def _is_curved(self, outputs: Tensor, targets: Tensor) -> bool:
        with torch.enable_grad():
            free = outputs.detach().requires_grad_()
            losses = self.per_sample(free, targets)
            (slope,) = torch.autograd.grad(losses.sum(), free, create_graph=True)
            if not slope.requires_grad:
                return False
            (curved,) = torch.autograd.grad(slope.sum(), free, allow_unused=True)
        return curved is not None and bool(curved.any())

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self.function(outputs, targets)
        if not isinstance(losses, Tensor) or losses.shape != (len(outputs),):
            found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise CalibrationError(
                f"the loss must return one number per sample, shape ({len(outputs)},), "
                f"not {found}; leave out the mean over samples, take the one over a sample's "
                "outputs (.flatten(1).mean(1)), or name it: loss='mse', 'bce', 'cross-entropy'"
            )
        return losses

    def sampled(
        self, outputs: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        raise CalibrationError(
            "a loss of your own has no distribution to sample labels from; "
            "use curvature=EmpiricalFisher()"
        )

    def sketched(
        self, outputs: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        return self.sampled(outputs, generator)

    def fits(self, *, values_move: bool) -> bool:
        return False

    def refit(self, outputs: Tensor, targets: Tensor) -> PerSample:
        return self

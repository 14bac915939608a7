"""Losses per sample, in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from qprune.data.outputs import IGNORED, Classes, Kind
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.objective.recognise import Recognised, recognise


class Loss(Protocol):
    """Protocol of a loss per sample, smooth in the network's outputs.

    `needs_labels`: targets are labels; otherwise they are the dense outputs.
    `has_distribution`: targets can be drawn, by `sampled` and `sketched`.
    """

    needs_labels: ClassVar[bool]
    has_distribution: ClassVar[bool]

    def resolved(self, outputs: Tensor, labels: Tensor | None) -> Loss:
        """Return the loss with all open choices made; called once, before a run.

        Args:
            outputs: outputs of the dense network on some samples, shape (m, ...).
            labels: labels of the same samples, shape (m, ...), or None.

        Raises:
            CalibrationError, ImpossibleRequestError: the loss does not fit them.
        """
        ...

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, shape (m,)."""
        ...

    def sampled(
        self, outputs: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        """Return losses against targets drawn from the outputs' own distribution, shape (m,).

        The draw does not depend on ``targets``; they only select the positions that count.
        """
        ...

    def sketched(
        self, outputs: Tensor, generator: torch.Generator, targets: Tensor | None = None
    ) -> Tensor:
        """Return numbers (m,) whose gradients' outer products average to the Gauss-Newton matrix.

        Sum_s grad grad' over random signs has the expectation sum_s J_s' C_s J_s, C_s the
        second derivative of the loss of sample s by the outputs. For ``targets`` see `sampled`.
        """
        ...

    def fits(self, *, values_move: bool) -> bool:
        """Return True if `refit` has an effect; ``values_move``: kept weights are compensated."""
        ...

    def refit(self, outputs: Tensor, targets: Tensor) -> Loss:
        """Return the loss with its free parameters fitted to the present outputs."""
        ...


@dataclass(frozen=True)
class DenseOutputs:
    """Loss KL(dense || pruned) of the outputs' distributions: without labels, zero when dense.

    Args:
        scale: factor on the pruned network's logits before the comparison.
        fit_scale: refit ``scale`` (at least 1) whenever the loss is expanded; None means
            only where kept weights do not move. Such a network loses logit scale with every
            pruned weight, which leaves the argmax unchanged; without the refit most of the
            loss would measure confidence. Only classes have such a scale.
        kind: kind of outputs (`qprune.data.outputs`); None = recognised
            (`qprune.objective.recognise`), logits over classes if not `resolved`. For real numbers
            the squared distance.
        reason: evidence for the recognised kind.

    Example:
        >>> DenseOutputs().per_sample(torch.eye(2), torch.eye(2))
        tensor([0., 0.])
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
    """Return the given kind, or the recognised one."""
    if kind is not None:
        return Recognised(kind.seen(outputs, labels), "as asked")
    found = recognise(outputs, labels)
    return replace(found, reason=f"recognised: {found.reason}; loss= or --loss chooses another")


def _in_brackets(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _best_scale(outputs: Tensor, targets: Tensor, limit: float = 64.0) -> float:
    """Return the factor in [1, limit] that minimises KL(dense || factor * outputs), by Newton.

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
        # At most a doubling: far from the minimum the curvature nearly vanishes.
        updated = min(max(scale - step, 1.0, scale / 2), limit, 2 * scale)
        if abs(updated - scale) <= 1e-6 * scale:
            break
        scale = updated
    return scale


@dataclass(frozen=True)
class Labels:
    """Loss against the labels of the data: cross entropy, squared error, or binary cross entropy.

    Args:
        kind: kind of outputs (`qprune.data.outputs`); None = recognised
            (`qprune.objective.recognise`), logits over classes if not `resolved`. Labels are then
            classes, one per position.
        ignored: integer labels of this value do not count.
        or_dense: without labels, compare with the dense outputs instead.
        reason: evidence for the recognised kind.

    Example:
        >>> Labels().per_sample(torch.zeros(2, 4), torch.tensor([0, 3]))  # ln 4
        tensor([1.3863, 1.3863])
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
            return self  # The run refuses missing labels with its own message.
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
        """Return a flat bool of correct predictions at counted labels; None without accuracy."""
        return self._kind.right(outputs, targets, self.ignored)

    def fits(self, *, values_move: bool) -> bool:
        return False

    def refit(self, outputs: Tensor, targets: Tensor) -> Labels:
        return self


@dataclass(frozen=True)
class PerSample:
    """Loss by the user's own function; its curvature is the empirical Fisher matrix.

    Args:
        function: (outputs, targets) -> losses of shape (m,), differentiable in the outputs.
        needs_labels: targets are the labels; otherwise they are the dense outputs.
        ignored: samples whose integer labels all have this value are left out; None = no
            such value.
        curved: the second derivative is not zero everywhere; found before the run.

    Example:
        >>> loss = PerSample(lambda outputs, targets: (outputs - targets).abs().sum(1))
        >>> loss.per_sample(torch.ones(2, 3), torch.zeros(2, 3))
        tensor([3., 3.])
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

"""Compensation: second-order steps of the kept weights.

The step is d = -(H + damping I)^-1 g on the kept weights, H the Gauss-Newton matrix of the mean
loss (all outputs, not a sampled one; Martens, arXiv 1412.1193, section 8). It is solved by
conjugate gradients, and the iterates on the way are candidates too: stopping early acts as
damping that grows with lack of curvature (Hansen, "Rank-deficient and discrete ill-posed
problems", chapter 6). Which iterate and which step length are taken is decided on the
acceptance split.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.func import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from qprune.cost import THOROUGH, Effort
from qprune.data.inputs import AnyInputs
from qprune.distributed.ranks import Parts
from qprune.distributed.sharding import Tangents
from qprune.errors import ImpossibleRequestError
from qprune.network.weights import Weights
from qprune.objective.losses import Loss
from qprune.objective.samples import Objective
from qprune.objective.trace.recorder import (
    Recorder,
    Samples,
    differentiating,
    forward,
    forward_with,
    out_of_memory,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MoveCost:
    """Work of one call of `Compensate.moves`.

    Attributes:
        samples: passed over in all.
        at_once: in one pass.
        candidates: moves that are judged.
        bytes_per_weight: held meanwhile, counted in the code.
    """

    samples: float
    at_once: int
    candidates: int
    bytes_per_weight: int


class Compensate(Protocol):
    """Protocol of a compensation: proposes moves of kept weights; the acceptance split decides."""

    @property
    def final_steps(self) -> int:
        """Number of calls at the last stage, after the last block."""
        ...

    @property
    def at_end(self) -> bool:
        """True: called after the last block only, not after the start and each block."""
        ...

    @property
    def num_samples(self) -> int | None:
        """Largest number of samples for one call; None = the effort's default."""
        ...

    def completed(self, effort: Effort) -> Compensate:
        """Return a copy with the defaults of ``effort`` for all that is None."""
        ...

    def at(self, stage: int, stages: int) -> Compensate:
        """Return a copy for the call after the first pass of one of ``stages``, from 0 on."""
        ...

    def suited(self, model: nn.Module, layers: Weights, inputs: AnyInputs) -> Compensate | None:
        """Return a copy with the derivatives that the network has; None if they do not suffice.

        They are tested on the first ``inputs``.
        """
        ...

    def cost(self, drawn: int) -> MoveCost:
        """The work of one call, given ``drawn`` samples."""
        ...

    def probe(self, objective: Objective) -> object:
        """One pass of the kind that moves are made of, to be timed; nothing is changed."""
        ...

    def moves(
        self, objective: Objective, kept: Bool[Tensor, " N"], generator: torch.Generator
    ) -> Iterator[Tensor]:
        """Yield candidate moves of all targeted weights, shape (N,), zero where pruned.

        The caller may write other weights into the model before it asks for the next one. Running
        statistics of BatchNorm that belong to a move are in the model when it is yielded.
        """
        ...


_PARTS = (
    *("final_steps", "at_end", "num_samples", "completed", "at", "suited", "cost", "probe"),
    "moves",
)


def as_compensate(value: Any) -> Compensate:
    """Return ``value``, a strategy.

    Raises:
        ImpossibleRequestError: it is none; names the first part that it lacks.
    """
    missing = [name for name in _PARTS if not hasattr(value, name)]
    if missing or isinstance(value, type):
        lack = f"it has no {missing[0]}" if missing else "it is a class; pass an object of it"
        shown = value.__name__ if isinstance(value, type) else type(value).__name__
        raise ImpossibleRequestError(
            f"compensate must be True, False or a qprune.Compensate, and {shown} is none: {lack}"
        )
    return cast(Compensate, value)


Parameters = tuple[Tensor, ...]


class Derivatives(Protocol):
    """Protocol of products with the Gauss-Newton matrix of a network."""

    @property
    def name(self) -> str:
        """Short name."""
        ...

    def product(
        self,
        function: Callable[..., Tensor],
        weights: Parameters,
        direction: Parameters,
        curve: Callable[[Tensor, Tensor], Tensor],
    ) -> Sequence[Tensor | None]:
        """Return J' C J v for the function's derivative J at ``weights``.

        Args:
            function: weights -> outputs.
            weights: point of the derivative.
            direction: v, in the shapes of the weights.
            curve: (outputs, J v) -> C J v.
        """
        ...


@dataclass(frozen=True)
class ForwardMode:
    """Products with J v by forward-mode differentiation."""

    name: str = "forward-mode derivatives"

    def product(
        self,
        function: Callable[..., Tensor],
        weights: Parameters,
        direction: Parameters,
        curve: Callable[[Tensor, Tensor], Tensor],
    ) -> Sequence[Tensor | None]:
        # Fused attention has no forward derivative.
        with sdpa_kernel(SDPBackend.MATH):
            outputs, moved = jvp(function, weights, direction)[:2]
        return vjp(function, *weights)[1](curve(outputs, moved))


@dataclass(frozen=True)
class DoubleBackward:
    """Products with J v as the derivative of u'J by u along v, without forward mode."""

    name: str = "double backward passes"

    def product(
        self,
        function: Callable[..., Tensor],
        weights: Parameters,
        direction: Parameters,
        curve: Callable[[Tensor, Tensor], Tensor],
    ) -> Sequence[Tensor | None]:
        own = [weight.detach().requires_grad_() for weight in weights]
        # Fused attention has no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            outputs = function(*own)
            probe = torch.zeros_like(outputs, requires_grad=True)
            pulled = torch.autograd.grad(outputs, own, probe, create_graph=True, allow_unused=True)
            along = [(g, v) for g, v in zip(pulled, direction, strict=True) if g is not None]
            (moved,) = torch.autograd.grad(
                [g for g, _ in along], probe, [v for _, v in along], retain_graph=True
            )
            curved = curve(outputs.detach(), moved)
            return torch.autograd.grad(outputs, own, curved, allow_unused=True)


@dataclass(frozen=True)
class Compensation:
    """Compensation by a few second-order steps.

    Args:
        damping: added to the diagonal of the curvature.
        iterations: those of conjugate gradients at which a candidate is taken, ascending.
        curvature_share: share of the samples used for the curvature; the gradient uses all of
            them. The defaults of both depend on the network's size (`qprune.cost`).
        lengths: step lengths tried for each.
        final_steps: steps at the last stage, after the last block.
        derivatives: how products with the curvature are taken; None = by forward mode, or by
            double backward passes where the network has no forward derivative.
    """

    damping: float = 1e-3
    iterations: tuple[int, ...] | None = None
    curvature_share: float | None = None
    lengths: tuple[float, ...] = (1.0, 0.5)
    final_steps: int = 8
    derivatives: Derivatives | None = None

    def completed(self, effort: Effort) -> Compensation:
        """Return a copy with the defaults of ``effort`` for all that is None."""
        return replace(
            self,
            iterations=self.iterations or effort.iterations,
            curvature_share=self.curvature_share or effort.curvature_share,
        )

    def suited(self, model: nn.Module, layers: Weights, inputs: AnyInputs) -> Compensation | None:
        """Return a copy with suitable derivatives; see `Compensate.suited`."""
        if self.derivatives is not None or layers.sharded:
            return self
        function = _outputs_by_weights(model, layers, inputs[:2])
        for derivatives in (ForwardMode(), DoubleBackward()):
            try:
                with differentiating(model, layers):
                    right = _is_adjoint(derivatives, function, layers.parameters)
                reason = "its products are wrong"
            except Exception as error:
                # A missing derivative can raise errors of any type.
                if out_of_memory(error):
                    raise
                right, reason = False, " ".join(str(error).split())[:200]
            if right:
                return replace(self, derivatives=derivatives)
            logger.info("compensation cannot take %s here: %s", derivatives.name, reason)
        return None

    def at(self, stage: int, stages: int) -> Compensation:
        """Return self: every call is alike."""
        return self

    @property
    def at_end(self) -> bool:
        """False: called after the start and each block."""
        return False

    @property
    def num_samples(self) -> None:
        """None: as many as an expansion of the loss takes."""
        return None

    def cost(self, drawn: int) -> MoveCost:
        """See `Compensate.cost`: vectors of conjugate gradients, copies of the weights."""
        marks = self.iterations or ()
        passed = drawn * (1 + max(marks, default=0) * (self.curvature_share or 1.0))
        return MoveCost(passed, drawn, len(marks) * len(self.lengths), 48)

    def probe(self, objective: Objective) -> Tensor:
        """See `Compensate.probe`: one product with the curvature."""
        weights = objective.weights
        return gauss_newton(objective)(torch.zeros(weights.size, device=weights.device))

    def moves(
        self, objective: Objective, kept: Bool[Tensor, " N"], generator: torch.Generator
    ) -> Iterator[Tensor]:
        """See `Compensate.moves`."""
        samples = objective.samples
        gradient = objective.gradient()
        complete = self.completed(THOROUGH)
        # Evenly spaced samples, not the first ones: augmented samples follow the others.
        stride = max(1, round(1 / (complete.curvature_share or 1.0)))
        some = samples.take(torch.arange(0, len(samples), stride))
        derivatives = self.derivatives or ForwardMode()
        product = gauss_newton(replace(objective, samples=some), derivatives)

        def damped(vector: Tensor) -> Tensor:
            return torch.where(kept, product(vector) + self.damping * vector, 0.0)

        marks = complete.iterations or ()
        for step in conjugate_gradients(damped, torch.where(kept, -gradient, 0.0), marks):
            for length in self.lengths:
                yield length * step


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], target: Float[Tensor, " N"], marks: tuple[int, ...]
) -> Iterator[Tensor]:
    """Yield the iterates ``marks`` of conjugate gradients for A x = target from x = 0.

    Ends early when the residual vanishes or the curvature along the search is not positive.
    """
    x = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squared = residual @ residual
    limit = 1e-12 * squared
    for iteration in range(1, max(marks) + 1):
        if squared <= limit:
            return
        image = product(direction)
        curvature = direction @ image
        if not curvature > 0:
            return
        length = squared / curvature
        x = x + length * direction
        residual = residual - length * image
        before, squared = squared, residual @ residual
        direction = residual + (squared / before) * direction
        if iteration in marks:
            yield x


def _is_adjoint(
    derivatives: Derivatives, function: Callable[..., Tensor], weights: Sequence[Tensor]
) -> bool:
    """Return True if u'(J v) = (J'u)'v for random u and v: a check for incomplete derivatives."""
    generator = torch.Generator().manual_seed(0)
    at = tuple(weight.detach() for weight in weights)
    direction = tuple(torch.randn(w.shape, generator=generator).to(w) for w in at)
    kept: list[Tensor] = []

    def curve(outputs: Tensor, moved: Tensor) -> Tensor:
        kept[:] = [torch.randn(outputs.shape, generator=generator).to(outputs), moved.detach()]
        return kept[0]

    pulled = derivatives.product(function, at, direction, curve)
    probe, moved = (tensor.double() for tensor in kept)
    reached = [(g, v) for g, v in zip(pulled, direction, strict=True) if g is not None]
    pairs = [(g.double(), v.double()) for g, v in reached]
    forth, back = float((probe * moved).sum()), sum(float((g * v).sum()) for g, v in pairs)
    size = sum(float((g * v).square().sum()) for g, v in pairs) ** 0.5 + abs(back)
    rounding = 0.05 if min(w.dtype.itemsize for w in at) < 4 else 1e-3
    return abs(forth - back) <= rounding * size


def _outputs_by_weights(
    model: nn.Module, layers: Weights, inputs: AnyInputs
) -> Callable[..., Tensor]:
    """Return the model's outputs as a function of the targeted weights, one argument each."""
    names = [layer.parameter_name for layer in layers]

    def function(*parameters: Tensor) -> Tensor:
        return forward_with(model, dict(zip(names, parameters, strict=True)), inputs)

    return function


def gauss_newton(
    objective: Objective, derivatives: Derivatives = ForwardMode()
) -> Callable[[Tensor], Tensor]:
    """The product v -> H v for ``objective`` at the current weights, over (N,) vectors.

    H = 1/m sum_s J_s' C_s J_s, J_s the derivative of the outputs of sample s by the weights and
    C_s the second derivative of its loss by the outputs.
    """
    model, layers, samples = objective.model, objective.weights, objective.samples
    loss, batch_size = objective.loss, objective.batch_size
    if layers.sharded:
        return _sharded_gauss_newton(objective)
    # Copies: the caller may try a step before it asks for the next.
    weights = tuple(weight.detach().clone() for weight in layers.parameters)

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        parts = zip(layers.split(vector), weights, strict=True)
        direction = tuple(part.view_as(weight).to(weight) for part, weight in parts)

        def one(_: int, batch: Samples) -> tuple[None, Parts]:
            def curve(outputs: Tensor, moved: Tensor) -> Tensor:
                return _output_curvature(loss, outputs, batch.targets, moved)

            function = _outputs_by_weights(model, layers, batch.inputs)
            return None, derivatives.product(function, weights, direction, curve)

        with differentiating(model, layers):
            batches = list(samples.batches(batch_size))
            # Forward mode has one level for the whole process, so only one thread may use it.
            samples.ranks.serial.accumulate(one, batches, layers.split(total))
        return total / len(samples)

    return product


def _sharded_gauss_newton(objective: Objective) -> Callable[[Tensor], Tensor]:
    """`gauss_newton` where modules hold all of their weights only while they run."""
    model, layers, samples = objective.model, objective.weights, objective.samples
    loss, batch_size = objective.loss, objective.batch_size
    at = layers.read()

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)

        def one(_: int, batch: Samples) -> tuple[None, Parts]:
            directions = (
                (layer.module, part.view(layer.shape))
                for layer, part in zip(layers, layers.split(vector), strict=True)
            )
            with torch.no_grad(), Tangents(directions), sdpa_kernel(SDPBackend.MATH):
                outputs, moved = unpack_dual(forward(model, batch.inputs))
            assert moved is not None
            curved = _output_curvature(loss, outputs, batch.targets, moved)
            with Recorder(layers) as recorder:
                again = forward(model, batch.inputs)
            seen = recorder.outputs()
            return None, recorder.gradients(
                torch.autograd.grad(again, seen, curved, allow_unused=True)
            )

        # The caller may have changed the weights since.
        layers.write(at)
        with differentiating(model, layers):
            batches = list(samples.batches(batch_size))
            samples.ranks.accumulate(one, batches, layers.split(total))
        return total / len(samples)

    return product


def _output_curvature(loss: Loss, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
    """Return C moved: the second derivative of the summed loss by the outputs, times ``moved``."""
    with torch.enable_grad():
        free = outputs.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(
            loss.per_sample(free, targets).sum(), free, create_graph=True
        )
        (curved,) = torch.autograd.grad(slope, free, moved.detach())
    return curved

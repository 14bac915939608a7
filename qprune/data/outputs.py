"""Kinds of outputs of a network, with the loss and curvature of each.

Every kind is an exponential family. Its natural parameters are what the loss is written in: the
logits, where the outputs are logits or probabilities, the outputs themselves where they are real
numbers. The second derivative of the loss by them is the variance of the sufficient statistics
(Martens 2020, arXiv 1412.1193, sect. 9), so that it is known without differentiating twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from qprune.errors import CalibrationError

#: Labels of this value do not count, by torch's convention.
IGNORED = -100


class Kind(Protocol):
    """Protocol of a kind of outputs. The loss of a sample is a mean over its positions, in nats.

    `scales`: a factor on the natural parameters changes confidence only.
    """

    scales: ClassVar[bool]

    def seen(self, outputs: Tensor, labels: Tensor | None) -> Kind:
        """Return the kind with open choices made from outputs (m, ...) and labels (m, ...)."""
        ...

    def natural(self, outputs: Tensor) -> Tensor:
        """Return the natural parameters, samples first.

        Raises:
            CalibrationError: the outputs cannot be of this kind.
        """
        ...

    def divergence(self, ours: Tensor, dense: Tensor) -> Tensor:
        """Return KL(dense || ours) of every sample, shape (m,), both as natural parameters."""
        ...

    def against(self, outputs: Tensor, labels: Tensor, ignored: int) -> Tensor:
        """Return the loss of every sample against its labels, shape (m,).

        Raises:
            CalibrationError: the labels do not fit.
        """
        ...

    def counted(self, labels: Tensor, ignored: int) -> Tensor | None:
        """Return a bool mask of labels that count, shape (m, positions); None where all do."""
        ...

    def sampled(self, ours: Tensor, generator: torch.Generator, counted: Tensor | None) -> Tensor:
        """Return `qprune.objective.losses.Loss.sampled`, from natural parameters."""
        ...

    def sketched(self, ours: Tensor, generator: torch.Generator, counted: Tensor | None) -> Tensor:
        """Return `qprune.objective.losses.Loss.sketched`, from natural parameters."""
        ...

    def right(self, outputs: Tensor, labels: Tensor, ignored: int) -> Tensor | None:
        """Return a flat bool of correct predictions at counted labels; None without accuracy."""
        ...


@dataclass(frozen=True)
class Classes:
    """Distribution over classes per position: classifiers, language models, segmentation.

    Args:
        dim: dimension of the classes; None = last, or 1 where there are more than three dimensions,
            unless labels say otherwise.
        logits: False = the outputs are probabilities that sum to 1, whose logarithms are
            taken; None = recognised by `seen`, else logits. Log-probabilities are logits.

    Example:
        >>> Classes(1).natural(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 8, 8, 3])
    """

    scales: ClassVar[bool] = True
    dim: int | None = None
    logits: bool | None = None

    def __str__(self) -> str:
        place = "the last dimension" if self.dim in (None, -1) else f"dimension {self.dim}"
        if self.logits is False:
            return f"probabilities that sum to 1 over {place}"
        return f"logits over the classes in {place}"

    def seen(self, outputs: Tensor, labels: Tensor | None) -> Classes:
        if self.logits is None:
            for dim in (self.dim,) if self.dim is not None else class_dims(outputs, labels):
                if sums_to_one(outputs, dim):
                    return Classes(dim, logits=False)
        dim = class_dims(outputs, labels)[0] if self.dim is None else self.dim
        return Classes(dim, self.logits is not False)

    def natural(self, outputs: Tensor) -> Tensor:
        """Return logits, classes last, shape (m, ..., classes) with at least one position."""
        dim = default_dim(outputs) if self.dim is None else self.dim
        if outputs.ndim < 2 or not -outputs.ndim <= dim < outputs.ndim or outputs.shape[dim] < 2:
            raise CalibrationError(
                f"outputs of shape {tuple(outputs.shape)} are no logits over classes; pass "
                "loss='mse' for real numbers, loss='bce' for independent sigmoids, or "
                "loss=PerSample(...)"
            )
        numbers = _wide(outputs)
        if self.logits is False:
            numbers = _above_zero(numbers, outputs.dtype).log()
        last = numbers.movedim(dim, -1)
        return last if last.ndim > 2 else last[:, None, :]

    def divergence(self, ours: Tensor, dense: Tensor) -> Tensor:
        ours, dense = ours.log_softmax(-1), dense.log_softmax(-1)
        return (dense.exp() * (dense - ours)).sum(-1).flatten(1).mean(1)

    def against(self, outputs: Tensor, labels: Tensor, ignored: int) -> Tensor:
        logits = self.natural(outputs)
        if _are_shares(outputs, labels, self.dim):
            shares = replace(self, logits=True).natural(labels)
            return -(shares * logits.log_softmax(-1)).sum(-1).flatten(1).mean(1)
        if labels.is_floating_point() and bool((labels != labels.round()).any()):
            raise CalibrationError(
                "labels are fractions, and cross entropy takes whole classes; pass loss='mse' "
                "for real numbers"
            )
        classes = _fitting(labels, logits.shape[:-1], outputs).long()
        counted = self.counted(labels, ignored)
        try:
            nll = functional.cross_entropy(
                logits.flatten(0, -2), classes.flatten(), reduction="none", ignore_index=ignored
            )
        except IndexError as error:
            present = labels if counted is None else labels.flatten(1)[counted]
            raise CalibrationError(
                f"labels must be classes 0..{logits.shape[-1] - 1}, as the model has outputs; "
                f"they run from {present.min():g} to {present.max():g}"
            ) from error
        return _mean(nll.view(classes.shape), counted)

    def counted(self, labels: Tensor, ignored: int) -> Tensor | None:
        return _counted(labels, ignored)

    def sampled(self, ours: Tensor, generator: torch.Generator, counted: Tensor | None) -> Tensor:
        drawn = draw_classes(ours, generator)
        nll = functional.cross_entropy(ours.flatten(0, -2), drawn.flatten(), reduction="none").view(
            drawn.shape
        )
        return _independent(nll, counted)

    def sketched(self, ours: Tensor, generator: torch.Generator, counted: Tensor | None) -> Tensor:
        shares = ours.detach().softmax(-1)
        # diag(p) - pp' = sum_c p_c (e_c - p)(e_c - p)'; a random sign per class makes one row
        # of the sum. A drawn label has the same mean, but of a confident network nearly all
        # draws are zero and a few are huge.
        root = shares.sqrt() * _signs(shares, generator)
        rows = root - shares * root.sum(-1, keepdim=True)
        if counted is None:
            return (ours * rows).flatten(1).sum(1) / _positions(ours.shape[:-1]) ** 0.5
        return _independent((ours * rows).sum(-1), counted)

    def right(self, outputs: Tensor, labels: Tensor, ignored: int) -> Tensor | None:
        found = self.natural(outputs).argmax(-1)
        if _are_shares(outputs, labels, self.dim):
            return (found == replace(self, logits=True).natural(labels).argmax(-1)).flatten()
        same = (found == _fitting(labels, found.shape, outputs)).flatten(1)
        counted = self.counted(labels, ignored)
        return same.flatten() if counted is None else same[counted]


@dataclass(frozen=True)
class Bernoulli:
    """Independent binary answers, one per output; the loss is a mean over a sample's outputs.

    The loss is that of `torch.nn.BCELoss`, so that its figures match those of the training.

    Args:
        logits: False = the outputs are probabilities, whose logits are taken; None = recognised
            by `seen`, else logits.
    """

    scales: ClassVar[bool] = False
    logits: bool | None = None

    def __str__(self) -> str:
        return f"independent {'sigmoids' if self.logits is False else 'logits of sigmoids'}"

    def seen(self, outputs: Tensor, labels: Tensor | None) -> Bernoulli:
        return Bernoulli(not in_unit_interval(outputs)) if self.logits is None else self

    def natural(self, outputs: Tensor) -> Tensor:
        """Return logits, shape (m, outputs)."""
        numbers = _wide(outputs).reshape(len(outputs), -1)
        if self.logits is False:
            chances = _above_zero(numbers, outputs.dtype)
            # The largest number below 1; above a half the spacing is the same.
            chances = chances.clamp(max=1 - torch.finfo(outputs.dtype).eps / 2)
            return chances.log() - (-chances).log1p()
        return numbers

    def divergence(self, ours: Tensor, dense: Tensor) -> Tensor:
        yes, no = functional.logsigmoid(dense), functional.logsigmoid(-dense)
        apart_yes = yes.exp() * (yes - functional.logsigmoid(ours))
        apart_no = no.exp() * (no - functional.logsigmoid(-ours))
        return (apart_yes + apart_no).mean(1)

    def against(self, outputs: Tensor, labels: Tensor, ignored: int) -> Tensor:
        logits = self.natural(outputs)
        answers = _fitting(labels, outputs.shape, outputs).reshape(logits.shape)
        counted = self.counted(labels, ignored)
        if counted is not None:
            answers = answers.where(counted, 0)
        if bool(((answers < 0) | (answers > 1)).any()):
            raise CalibrationError(
                "labels of independent sigmoids must lie between 0 and 1; they run from "
                f"{answers.min():g} to {answers.max():g}"
            )
        nll = functional.binary_cross_entropy_with_logits(
            logits, answers.to(logits.dtype), reduction="none"
        )
        return _mean(nll, counted)

    def counted(self, labels: Tensor, ignored: int) -> Tensor | None:
        return _counted(labels, ignored)

    def sampled(self, ours: Tensor, generator: torch.Generator, counted: Tensor | None) -> Tensor:
        chances = ours.detach().sigmoid()
        uniforms = torch.rand(ours.shape, generator=generator, device=generator.device)
        drawn = (uniforms.to(chances) < chances).to(chances)
        nll = functional.binary_cross_entropy_with_logits(ours, drawn, reduction="none")
        return _independent(nll, counted)

    def sketched(self, ours: Tensor, generator: torch.Generator, counted: Tensor | None) -> Tensor:
        chances = ours.detach().sigmoid()
        # Not 1 - p, which rounds to 0 for a confident network.
        deviation = (chances * (-ours.detach()).sigmoid()).sqrt()
        return _independent(ours * deviation * _signs(chances, generator), counted)

    def right(self, outputs: Tensor, labels: Tensor, ignored: int) -> Tensor | None:
        found = self.natural(outputs) > 0
        same = found == (_fitting(labels, outputs.shape, outputs).reshape(found.shape) > 0.5)
        counted = self.counted(labels, ignored)
        return same.flatten() if counted is None else same[counted]


@dataclass(frozen=True)
class Real:
    """Real numbers: squared error, a mean over all of a sample's outputs as `torch.nn.MSELoss`'s.

    With k outputs it is the negative log-likelihood, up to a constant, of normal distributions
    of variance k/2; its second derivative is 2/k on the diagonal.
    """

    scales: ClassVar[bool] = False

    def __str__(self) -> str:
        return "real numbers (squared error)"

    def seen(self, outputs: Tensor, labels: Tensor | None) -> Real:
        return self

    def natural(self, outputs: Tensor) -> Tensor:
        """Return the outputs, shape (m, outputs)."""
        return _wide(outputs).reshape(len(outputs), -1)

    def divergence(self, ours: Tensor, dense: Tensor) -> Tensor:
        """Return the mean squared distance of every sample, shape (m,)."""
        return (ours - dense).square().mean(1)

    def against(self, outputs: Tensor, labels: Tensor, ignored: int) -> Tensor:
        ours = self.natural(outputs)
        wanted = _fitting(labels, outputs.shape, outputs).reshape(ours.shape)
        return self.divergence(ours, wanted.to(ours.dtype))

    def counted(self, labels: Tensor, ignored: int) -> Tensor | None:
        return None

    def sampled(self, ours: Tensor, generator: torch.Generator, counted: Tensor | None) -> Tensor:
        noise = torch.randn(ours.shape, generator=generator, device=generator.device).to(ours)
        return self.divergence(ours, ours.detach() + (ours.shape[1] / 2) ** 0.5 * noise)

    def sketched(self, ours: Tensor, generator: torch.Generator, counted: Tensor | None) -> Tensor:
        return (ours * _signs(ours, generator)).sum(1) * (2 / ours.shape[1]) ** 0.5

    def right(self, outputs: Tensor, labels: Tensor, ignored: int) -> Tensor | None:
        return None


def draw_classes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one class per row of (..., classes) logits, by inverting the distribution function.

    Uniforms are drawn on the generator's device, so that the draw is the same on every device.
    """
    uniforms = torch.rand(logits.shape[:-1], generator=generator, device=generator.device)
    cumulative = logits.detach().double().softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniforms.to(cumulative)[..., None])[..., 0]
    return drawn.clamp(max=logits.shape[-1] - 1)


def default_dim(outputs: Tensor) -> int:
    """Return the usual dimension of classes: 1 with more than three dimensions, else last."""
    return 1 if outputs.ndim > 3 else -1


def class_dims(outputs: Tensor, labels: Tensor | None) -> tuple[int, ...]:
    """Return possible dimensions of classes, likeliest first, by the labels' shape or by custom."""
    if outputs.ndim < 3:
        return (-1,)
    usual = default_dim(outputs)
    dims = (usual, 1 if usual == -1 else -1)
    if labels is None or labels.is_floating_point():
        return dims
    fitting = [d for d in dims if outputs.movedim(d, -1).shape[1:-1] == labels.shape[1:]]
    return (*fitting, *(d for d in dims if d not in fitting))


def in_unit_interval(outputs: Tensor) -> bool:
    """Return True if all outputs lie in [0, 1] and are not all equal."""
    low, high = outputs.min(), outputs.max()
    return bool((low >= 0) & (high <= 1 + _slack(outputs)) & (low < high))


def sums_to_one(outputs: Tensor, dim: int) -> bool:
    """Return True if outputs are non-negative and sum to 1 over ``dim``, zero padding aside."""
    if not outputs.is_floating_point() or outputs.ndim < 2 or outputs.shape[dim] < 2:
        return False
    sums = _wide(outputs).sum(dim)
    good = ((sums - 1).abs() <= _slack(outputs)) | (sums == 0)
    return bool((outputs >= 0).all() & good.all() & (sums > 0).any())


def _slack(outputs: Tensor) -> float:
    """Return the rounding tolerance of a sum of probabilities."""
    return max(1e-4, 4 * torch.finfo(outputs.dtype).eps)


def _wide(outputs: Tensor) -> Tensor:
    """Return outputs in float32 or better, since small differences of losses decide."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


def _above_zero(chances: Tensor, dtype: torch.dtype) -> Tensor:
    """Clip probabilities so that two derivatives of the logarithm are finite in ``dtype``."""
    tiny = torch.finfo(dtype).tiny
    return chances.clamp(min=tiny if dtype == torch.float16 else tiny**0.5)


def _are_shares(outputs: Tensor, labels: Tensor, dim: int | None) -> bool:
    """Return True if labels are distributions over classes, as in `torch.nn.CrossEntropyLoss`."""
    dim = default_dim(outputs) if dim is None else dim
    return labels.shape == outputs.shape and sums_to_one(labels, dim)


def _fitting(labels: Tensor, shape: Sequence[int], outputs: Tensor) -> Tensor:
    """Return labels in ``shape``; dimensions of size 1 are ignored.

    Raises:
        CalibrationError: their number or their order differs.
    """
    rest, wanted = ([n for n in s[1:] if n != 1] for s in (labels.shape, shape))
    same_number = len(labels) == shape[0] and _positions(labels.shape) == _positions(shape)
    # Flat labels are in the outputs' order; a transposed plane is not.
    if not same_number or (rest != wanted and min(len(rest), len(wanted)) > 1):
        raise CalibrationError(
            f"labels of shape {tuple(labels.shape)} do not fit outputs of shape "
            f"{tuple(outputs.shape)}; pass one label a sample, or one for each position "
            "(loss='mse' and 'bce': one for each output)"
        )
    return labels.reshape(tuple(shape))


def _counted(labels: Tensor, ignored: int) -> Tensor | None:
    if labels.is_floating_point():
        return None
    counted = labels.reshape(len(labels), -1) != ignored
    return None if bool(counted.all()) else counted


def _positions(shape: Sequence[int]) -> int:
    """Return the number of positions per sample; ``shape`` has the samples first."""
    return torch.Size(shape[1:]).numel()


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean over a sample's counted positions; zero where there is none."""
    values = values.flatten(1)
    if counted is None:
        return values.mean(1)
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1)


def _independent(values: Tensor, counted: Tensor | None) -> Tensor:
    """Return the sum of independent draws divided by the root of their number.

    The variance is then that of one draw.
    """
    values = values.flatten(1)
    if counted is None:
        return values.sum(1) / values.shape[1] ** 0.5
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1) ** 0.5


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw random signs on the generator's device."""
    signs = torch.randint(2, like.shape, generator=generator, device=generator.device)
    return (2 * signs - 1).to(like)

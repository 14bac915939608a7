"""Calibration data, split once into a part to fit on and a part to accept on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qprune.data.batches import as_tensors, gathered
from qprune.data.binding import Binding, ByCall, BySignature
from qprune.data.inputs import AnyInputs, Call, Inputs, by_arguments, mapped, tensors_of
from qprune.data.signature import inside
from qprune.errors import CalibrationError, ImpossibleRequestError


class Calibration:
    """Calibration samples: inputs of the network, with labels where the loss needs them.

    Args:
        inputs: shape (m, ...), one sample a row, as the model takes them; or a mapping by the
            names of its arguments, or a tuple by their positions, of such tensors: all of them
            are passed. Numpy arrays of float64 become torch's default type.
        labels: shape (m, ...); None when the loss needs none.

    Raises:
        CalibrationError: no samples, NaN or Inf in the inputs, or labels of another length.

    Example:
        >>> data = Calibration({"x": torch.zeros(6, 3), "z": torch.zeros(6, 2)}, torch.arange(6))
        >>> len(data), data.take(torch.tensor([5])).labels
        (6, tensor([5]))
    """

    def __init__(self, inputs: object, labels: object = None) -> None:
        dtype = torch.get_default_dtype()
        made = inputs if isinstance(inputs, Inputs) else as_tensors(inputs, dtype)
        self.inputs: AnyInputs = made if isinstance(made, Tensor | Inputs) else Inputs(made)
        self.labels: Tensor | None = None if labels is None else as_tensors(labels, dtype)
        tensors = tensors_of(self.inputs)
        if not tensors[0].ndim or not len(tensors[0]):
            raise CalibrationError("the calibration data are empty; pass at least two samples")
        for tensor in tensors:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                bad = torch.nonzero(~torch.isfinite(tensor))[0, 0].item()
                raise CalibrationError(f"calibration sample {bad} holds NaN or Inf")
        if labels is not None and not (isinstance(self.labels, Tensor) and self.labels.ndim):
            raise CalibrationError(
                f"the labels must be a tensor or an array of one per sample, not "
                f"{type(labels).__name__}"
            )
        if self.labels is not None and len(self.labels) != len(self.inputs):
            raise CalibrationError(
                f"{len(self.inputs)} calibration inputs but {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def cpu(self) -> Calibration:
        """Return a copy with all tensors on the CPU."""
        labels = None if self.labels is None else self.labels.cpu()
        return Calibration(mapped(self.inputs, Tensor.cpu), labels)

    def take(self, indices: Tensor) -> Calibration:
        """Return the samples at ``indices``."""
        return Calibration(
            self.inputs[indices], None if self.labels is None else self.labels[indices]
        )

    def split(
        self, accept_share: float, generator: torch.Generator
    ) -> tuple[Calibration, Calibration]:
        """Return (fit, accept); acceptance gets a random ``accept_share`` of the samples.

        Raises:
            CalibrationError: one of the two would be empty.
        """
        order = torch.randperm(len(self), generator=generator)
        size = round(accept_share * len(self))
        if not 0 < size < len(self):
            raise CalibrationError(
                f"{len(self)} calibration samples cannot be split into a part to fit on and a "
                f"part to accept on (share {accept_share}); pass more samples"
            )
        return self.take(order[size:].sort().values), self.take(order[:size].sort().values)


def as_calibration(
    data: Any,
    model: nn.Module | None = None,
    *,
    forward: Call | None = None,
    num_samples: int | None = None,
) -> Calibration:
    """Return a `Calibration` of data in any of the usual forms.

    Args:
        data: a `Calibration`; a tensor or numpy array of inputs; a tuple (X, Y), or a list where
            shapes tell that it is one; a dict by the model's argument names; or an iterable of such
            batches: a DataLoader, list, generator or other iterable. A torch or Hugging Face data
            set gives one sample at a time, and so does an iterable whose elements hold numbers.
            Labels are the last of a tuple, or the key ``labels``, ``label``, ``targets``,
            ``target`` or ``y``. Float64 numpy arrays become the model's type.
        model: takes the inputs; its ``forward`` decides which of several tensors are inputs.
        forward: calls the model with a batch of the structure that ``data`` gives.
        num_samples: samples taken from the start; None = all, or 1024 of data without a length.

    Raises:
        CalibrationError: ``data`` is none of these, empty or ambiguous.
        ImpossibleRequestError: ``num_samples`` is no positive number.

    Example:
        >>> batches = [(torch.zeros(4, 3), torch.ones(4))] * 3
        >>> as_calibration(batches, num_samples=6).labels
        tensor([1., 1., 1., 1., 1., 1.])
    """
    if num_samples is not None and (
        isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1
    ):
        raise ImpossibleRequestError(
            f"num_calibration_samples must be a whole number of at least 1, not {num_samples!r}"
        )
    if isinstance(data, Calibration):
        return _narrowed(data, forward, num_samples)
    if isinstance(data, Inputs):
        return _narrowed(Calibration(data), forward, num_samples)
    pad_id = None if model is None else _pad_id(model)
    found = gathered(data, _float_type(model), num_samples, pad_id)
    binding: Binding = BySignature.of(model) if forward is None else ByCall(forward)
    bound = binding(found)
    return Calibration(bound.inputs, bound.labels)


def _narrowed(data: Calibration, forward: Call | None, number: int | None) -> Calibration:
    """Return the first samples of ``data``, to be called by ``forward`` if given."""
    if number is not None and number < len(data):
        data = data.take(torch.arange(number))
    if forward is None:
        return data
    tree = data.inputs.tree if isinstance(data.inputs, Inputs) else data.inputs
    return Calibration(Inputs(tree, forward), data.labels)


def _float_type(model: nn.Module | None) -> torch.dtype:
    """Return the type of the model's first floating-point parameter."""
    parameters = () if model is None else model.parameters()
    types = (p.dtype for p in parameters if p.is_floating_point())
    return next(types, torch.get_default_dtype())


def _pad_id(model: nn.Module) -> int | None:
    pad_id = getattr(getattr(inside(model), "config", None), "pad_token_id", None)
    return pad_id if isinstance(pad_id, int) else None


def plain(inputs: AnyInputs) -> AnyInputs:
    """Return the first tensor alone where the others are masks without a masked entry."""
    if isinstance(inputs, Tensor) or inputs.call is not by_arguments:
        return inputs
    tree = inputs.tree if isinstance(inputs.tree, Mapping) else {}
    main = next((key for key in ("input_ids", "pixel_values") if key in tree), None)
    if main is None or tree.keys() - {main, "attention_mask"}:
        return inputs
    mask = tree.get("attention_mask")
    return tree[main] if mask is None or bool(mask.all()) else inputs

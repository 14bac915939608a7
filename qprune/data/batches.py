"""Batches and rows of any source, joined into one batch with samples first."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import IterableDataset as Stream

from qprune.data.padding import padded
from qprune.errors import CalibrationError

logger = logging.getLogger(__name__)

#: Samples taken from a source without a length.
UNKNOWN_LENGTH = 1024
_NUMBERS = (bool, int, float, np.generic)
# They have one dimension for one sample, two for a batch.
_SEQUENCES = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class NoTensor:
    """Placeholder for a value of a batch that is not a tensor.

    Attributes:
        kind: name of its type.
    """

    kind: str


@dataclass(frozen=True, eq=False)
class Gathered:
    """All samples as one batch, in the structure of the source.

    Attributes:
        batch: tensors of shape (m, ...) in dicts, tuples and lists, other things as `NoTensor`.
        kind: makes a batch of the caller's type from a dict; None where it has that type already.
    """

    batch: Any
    kind: Callable[[dict[str, Any]], Any] | None = None


def gathered(data: Any, dtype: torch.dtype, limit: int | None, pad_id: int | None) -> Gathered:
    """Return the first ``limit`` samples of ``data`` as one batch.

    Args:
        data: one batch, an iterable of batches or of rows, or a data set; see `as_calibration`.
        dtype: of float64 numpy arrays and of Python's floats.
        limit: None takes all, or `UNKNOWN_LENGTH` from a source without a length.
        pad_id: token that fills shorter padded sequences; None finds it in the data.

    Raises:
        CalibrationError: no samples, or batches that do not fit together.
    """
    data = data() if inspect.isgeneratorfunction(data) else data
    if _is_whole(data):
        batch = as_tensors(data, dtype)
        return Gathered(_first(batch, limit, "the calibration data"), _kind_of(data))
    # A DataLoader draws a seed from torch's global generator, which is restored.
    with torch.random.fork_rng(devices=[]):
        elements = _elements(data)
        if limit is None and not _is_sized(data):
            limit = UNKNOWN_LENGTH
            logger.info(
                "the calibration data have no length: the first %d samples are taken "
                "(num_calibration_samples)",
                limit,
            )
        parts, kind = _taken(data, elements, dtype, limit)
    return Gathered(_together(parts, pad_id), kind)


def as_tensors(value: object, dtype: torch.dtype) -> Any:
    """Return ``value`` as dicts, tuples and lists of tensors; numbers are left as they are.

    Raises:
        CalibrationError: a tensor that cannot be cut by samples.
    """
    if isinstance(value, Tensor):
        return _dense(value)
    if isinstance(value, np.ndarray):
        return _of_array(value, dtype)
    if is_dataclass(value) and not isinstance(value, Mapping | type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: as_tensors(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple):
        # A named tuple or a plain one.
        make = getattr(type(value), "_make", tuple)
        return make(as_tensors(item, dtype) for item in value)
    if isinstance(value, list):
        return _of_list(value, dtype)
    return value if isinstance(value, _NUMBERS) else NoTensor(type(value).__name__)


def _dense(tensor: Tensor) -> Tensor:
    if tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested:
        return tensor.detach()
    layout = "nested" if tensor.is_nested else f"of layout {tensor.layout}"
    what = "quantised" if tensor.is_quantized else layout
    raise CalibrationError(f"a calibration tensor is {what}; pass dense tensors")


def _of_array(array: np.ndarray, dtype: torch.dtype) -> Any:
    if array.dtype.kind not in "biufc" or isinstance(array, np.ma.MaskedArray):
        return NoTensor(f"{type(array).__name__} of {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        tensor = torch.from_numpy(array)
    except TypeError:  # Such as numpy's long double.
        return NoTensor(f"array of {array.dtype}")
    return tensor.to(dtype) if tensor.dtype == torch.float64 else tensor


def _of_list(values: list[Any], dtype: torch.dtype) -> Any:
    """Return a tensor of numbers or of rows of numbers; else a list."""
    if values and all(isinstance(x, _NUMBERS) for x in values):
        made = torch.tensor(values)
        return made.to(dtype) if made.is_floating_point() else made
    items = [as_tensors(x, dtype) for x in values]
    if items and all(isinstance(x, list) for x in values) and _all_tensors(items):
        return torch.stack(items) if len({x.shape for x in items}) == 1 else items
    if items and _all_tensors(items) and not any(x.ndim for x in items):
        return torch.stack(items)
    if items and all(isinstance(x, NoTensor) for x in items):
        return NoTensor(f"list of {items[0].kind}")
    return items


def _all_tensors(items: Iterable[Any]) -> bool:
    return all(isinstance(item, Tensor) for item in items)


def _is_whole(data: Any) -> bool:
    """Return True if ``data`` is one batch of all samples, not an iterable of batches or rows.

    Raises:
        CalibrationError: ``data`` is ambiguous.
    """
    if isinstance(data, Tensor | np.ndarray | Mapping):
        return True
    if isinstance(data, Dataset | DataLoader):
        return False
    if isinstance(data, tuple):
        return not data or hasattr(data, "_fields") or _is_pair_of_batches(data)
    if isinstance(data, list) and len(data) == 2:
        return _is_pair(*data)
    return is_dataclass(data) and not isinstance(data, Iterable)


def _is_pair_of_batches(data: tuple[Any, ...]) -> bool:
    """Return True for the arguments of one batch; a tuple of only pairs or mappings has batches."""
    if all(isinstance(x, Mapping) for x in data):
        return False
    if not all(isinstance(x, tuple | list) and _holds_tensors(x) for x in data):
        return True
    if len(data) == 2:
        raise CalibrationError(
            "calibration is a tuple of two tuples: pass [batch, batch] for two batches, or "
            "qprune.Calibration(inputs, labels)"
        )
    return False


def _is_pair(first: Any, second: Any) -> bool:
    if not isinstance(second, Tensor | np.ndarray):
        return False
    if not isinstance(first, Tensor | np.ndarray):
        return isinstance(first, Mapping)
    shapes: list[tuple[int, ...]] = [tuple(x.shape) for x in (first, second)]
    alike = _is_float(first) == _is_float(second)
    if not all(shapes) or shapes[0][0] != shapes[1][0]:
        return False
    if shapes[0] == shapes[1] and alike:
        raise CalibrationError(
            f"calibration is a list of two tensors of shape {shapes[0]}: pass the tuple (X, Y) "
            "for inputs and labels, or torch.cat([X, Y]) for inputs"
        )
    return True


def _is_float(array: Tensor | np.ndarray) -> bool:
    return array.dtype.kind == "f" if isinstance(array, np.ndarray) else array.is_floating_point()


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(x, Tensor | np.ndarray) for x in tree_leaves(value))


def _kind_of(batch: Any) -> Callable[[dict[str, Any]], Any] | None:
    if isinstance(batch, Mapping):
        return None if type(batch) is dict else type(batch)
    return _Rebuilt(type(batch)) if is_dataclass(batch) else None


@dataclass(frozen=True)
class _Rebuilt:
    """Builder of a dataclass from the dict of its fields."""

    kind: type

    def __call__(self, items: dict[str, Any]) -> Any:
        return self.kind(**items)


def _is_rows(data: Any) -> bool:
    """Return True for a data set, which gives one sample at a time."""
    hugging_face = type(data).__module__ in ("datasets.arrow_dataset", "datasets.iterable_dataset")
    return isinstance(data, Dataset) or hugging_face or not isinstance(data, Iterable)


def _is_batched(data: Any) -> bool:
    return isinstance(data, DataLoader) and data.batch_sampler is not None


def _is_sized(data: Any) -> bool:
    try:
        return not isinstance(data, Iterator | Stream) and len(data) >= 0
    except TypeError:
        return False


def _elements(data: Any) -> Iterator[Any]:
    """Yield the elements; those of a data set by index, since its iteration need not end."""
    if isinstance(data, str | bytes) or not (
        isinstance(data, Iterable) or (hasattr(data, "__getitem__") and hasattr(data, "__len__"))
    ):
        raise unfit(data)
    by_index = isinstance(data, Dataset) and not isinstance(data, Stream)
    if by_index or not isinstance(data, Iterable):
        return (data[index] for index in range(len(data)))  # pyright: ignore
    return iter(data)


def unfit(data: Any) -> CalibrationError:
    """Return the error for data of a type that no samples can be read from."""
    return CalibrationError(
        "calibration must be a qprune.Calibration, a tensor or array of inputs, an "
        "(inputs, labels) pair, a dict by the model's argument names, a data set, or a DataLoader "
        f"or other iterable of such batches, not {type(data).__name__}"
    )


def _taken(
    data: Any, elements: Iterable[Any], dtype: torch.dtype, limit: int | None
) -> tuple[list[Any], Callable[[dict[str, Any]], Any] | None]:
    """Return the batches, the last one cut, and the caller's type of them."""
    parts, number, kind = [], 0, None
    rows = False if _is_batched(data) else True if _is_rows(data) else None
    for element in elements:
        batch = as_tensors(element, dtype)
        if not parts:
            kind = _kind_of(element)
            if (
                isinstance(batch, tuple)
                and isinstance(next(iter(batch), None), int)
                and (_is_nest(batch[-1]))
            ):
                raise CalibrationError(
                    "the calibration data give a number and a batch, as enumerate does; pass the "
                    "batches alone"
                )
            if isinstance(batch, _NUMBERS) or not any(map(_is_number, tree_leaves(batch))):
                raise unfit(data if isinstance(data, Sequence) else element)
            rows = _looks_like_a_row(batch) if rows is None else rows
            if rows:
                logger.info("every element of the calibration data is taken for one sample")
        if rows:
            batch = tree_map(lambda x: _as_tensor(x, dtype)[None] if _is_number(x) else x, batch)
        what = f"calibration {'sample' if rows else 'batch'} {len(parts)}"
        parts.append(_first(batch, None if limit is None else limit - number, what))
        number += _size(parts[-1], what)
        if limit is not None and number >= limit:
            break
    if not parts:
        raise (
            unfit(data)
            if isinstance(data, list | tuple)
            else CalibrationError("the calibration data are empty; pass at least two samples")
        )
    return parts, kind


def _is_nest(value: Any) -> bool:
    return isinstance(value, tuple | list | dict)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | bool | int | float | np.generic)


def _as_tensor(value: Any, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        return value
    made = torch.as_tensor(value)
    return made.to(dtype) if made.is_floating_point() else made


def _looks_like_a_row(element: Any) -> bool:
    """Return True for one sample: it holds a number, or its tensors differ in first dimension.

    Raises:
        CalibrationError: it may be a sample or a batch.
    """
    leaves = [leaf for leaf in tree_leaves(element) if _is_number(leaf)]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    if len(tensors) < len(leaves) or (isinstance(element, Tensor) and element.ndim == 1):
        return True
    if isinstance(element, dict) and any(
        isinstance(element.get(key), Tensor) and element[key].ndim == 1 for key in _SEQUENCES
    ):
        return True
    if len({len(tensor) for tensor in tensors}) > 1:
        return True
    if all(tensor.ndim == 1 for tensor in tensors):
        raise CalibrationError(
            f"the elements of the calibration data hold tensors of shape {tuple(tensors[0].shape)},"
            " which are one sample each or a batch of numbers: pass a DataLoader of batches, or a "
            "torch Dataset of samples"
        )
    return False


def _size(batch: Any, what: str) -> int:
    """Return the number of samples of a batch.

    Raises:
        CalibrationError: its tensors differ in number of samples.
    """
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    sizes = {len(tensor) if tensor.ndim else None for tensor in tensors}
    if len(sizes) != 1 or None in sizes:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "of no tensor"
        raise CalibrationError(
            f"{what} has the shapes {shapes}; every tensor must have the samples in its first "
            "dimension"
        )
    return len(tensors[0])


def _first(batch: Any, number: int | None, what: str) -> Any:
    """Return a copy of the first ``number`` samples of one batch."""
    if number is None or _size(batch, what) <= number:
        return batch
    return tree_map(lambda x: x[:number].clone() if isinstance(x, Tensor) else x, batch)


def _together(parts: Sequence[Any], pad_id: int | None) -> Any:
    try:
        return tree_map(_one_after_the_other, *padded(parts, pad_id))
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, CalibrationError):
            raise
        samples = [repr(tree_map(lambda leaf: _shape(leaf, 1), part)) for part in parts]
        odd = next((i for i, x in enumerate(samples) if x != samples[0]), 1)
        shapes = [tree_map(_shape, parts[i]) for i in (0, odd)]
        raise CalibrationError(
            f"calibration batches do not fit together: batch 0 has {shapes[0]}, batch {odd} "
            f"{shapes[1]}; sequences of different lengths need an attention_mask in the batch "
            "(a dict), or one length"
        ) from error


def _one_after_the_other(first: Any, *rest: Any) -> Any:
    if any(isinstance(leaf, Tensor) for leaf in (first, *rest)):
        return torch.cat([first, *rest]) if rest else first
    if all(leaf == first for leaf in rest):
        return first
    return NoTensor(f"{type(first).__name__} that changes")


def _shape(leaf: Any, first: int = 0) -> Any:
    return tuple(leaf.shape[first:]) if isinstance(leaf, Tensor) else type(leaf).__name__

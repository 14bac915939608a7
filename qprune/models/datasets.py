"""Labelled data by name: training samples to calibrate on, test samples to score on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from qprune.data.augment import Augmentation
from qprune.data.calibration import Calibration
from qprune.data.images import ShiftImages
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.models.evaluate import score
from qprune.models.factories import call_factory
from qprune.objective.losses import Loss
from qprune.results import Score

#: Number of scikit-learn's 1,797 digits used as test images, and the seed of the split.
_DIGITS_TEST, _DIGITS_SEED = 500, 0


@dataclass(frozen=True)
class Normalization:
    """Normalization of images: (pixel / full scale - mean) / std, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: ArrayLike, full_scale: float = 255.0) -> Tensor:
        """Return float inputs of the same shape; channels, if several, come last."""
        inputs = np.array(pixels, np.float32)
        inputs /= np.float32(full_scale)
        inputs -= np.array(self.mean, np.float32)
        inputs /= np.array(self.std, np.float32)
        return torch.from_numpy(inputs)


NORMALIZATIONS: Mapping[str, Normalization] = {
    "none": Normalization((0.0,), (1.0,)),
    "half": Normalization((0.5,), (0.5,)),
    "digits": Normalization((0.3053,), (0.3760,)),
    "mnist": Normalization((0.1307,), (0.3081,)),
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}


@dataclass(frozen=True, eq=False)
class DataSet:
    """Labelled samples in two parts that share none.

    Attributes:
        train_inputs: shape (samples, ...); the only samples that pruning uses.
        train_labels: shape (samples, ...): class indices; floats of a regression.
        test_inputs: shape (samples, ...); for scores only.
        test_labels: the same of the test samples.
        augment: augmentation for samples of this kind; "auto" = the default for their shape.

    Raises:
        CalibrationError: a part is empty, or its inputs and labels differ in number.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    augment: Augmentation | str | None = "auto"

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            inputs, labels = getattr(self, f"{part}_inputs"), getattr(self, f"{part}_labels")
            if len(inputs) == 0 or len(inputs) != len(labels):
                raise CalibrationError(
                    f"the {part} part has {len(inputs)} inputs and {len(labels)} labels; "
                    "each input needs one label, and there must be at least one"
                )

    def calibration(self, num_samples: int, seed: int) -> Calibration:
        """Draw ``num_samples`` training samples by ``seed`` without replacement.

        Raises:
            ImpossibleRequestError: fewer than one, or more than there are.
        """
        available = len(self.train_inputs)
        if not 1 <= num_samples <= available:
            raise ImpossibleRequestError(
                f"num_calibration_samples is {num_samples}, but the data have {available} "
                f"training samples; ask for 1 to {available}"
            )
        drawn = np.random.default_rng(seed).permutation(available)[:num_samples]
        chosen = torch.from_numpy(drawn)
        return Calibration(self.train_inputs[chosen], self.train_labels[chosen])

    def score(self, model: nn.Module, loss: Loss | str = "dense") -> Score:
        """Return the accuracy and the loss on the test part; ``loss`` as in `qprune.prune`."""
        return score(model, self.test_inputs, self.test_labels, loss=loss)


def load_data(spec: str, normalization: str | None = None) -> DataSet:
    """Return the data set that ``spec`` names.

    Args:
        spec: ``digits`` (scikit-learn's, 64 pixels), ``mnist:PATH.npz`` or ``cifar10:PATH.npz``
            (arrays x_train, y_train, x_test, y_test of uint8), or ``package.module:factory``,
            a callable without arguments that returns a `DataSet`.
        normalization: a name in `NORMALIZATIONS`; None is the data's own. A network must be
            given what it was trained with.

    Raises:
        ImpossibleRequestError: no such data, file or normalization.
        CalibrationError: the file's arrays are not what they should be.

    Example:
        >>> data = load_data("digits")
        >>> data.train_inputs.shape, data.test_inputs.shape
        (torch.Size([1297, 64]), torch.Size([500, 64]))
    """
    kind, _, rest = spec.partition(":")
    source = _SOURCES.get(kind)
    if source is None and rest:
        if normalization is not None:
            raise ImpossibleRequestError(
                f"--normalization does not apply to {spec!r}: the factory normalises its own data"
            )
        return call_factory(spec, DataSet)
    if source is None:
        raise ImpossibleRequestError(
            f"no data named {spec!r}; there are: digits, mnist:PATH.npz, cifar10:PATH.npz, "
            "package.module:factory"
        )
    name = kind if normalization is None else normalization
    if name not in NORMALIZATIONS:
        raise ImpossibleRequestError(
            f"no normalization named {name!r}; there are: {', '.join(NORMALIZATIONS)}"
        )
    return source(rest, NORMALIZATIONS[name])


def _digits(path: str, normalize: Normalization) -> DataSet:
    if path:
        raise ImpossibleRequestError(f"digits come with scikit-learn; drop the path {path!r}")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_DIGITS_SEED).permutation(len(images))
    train, test = order[_DIGITS_TEST:], order[:_DIGITS_TEST]
    inputs, targets = normalize(images, full_scale=16.0), torch.from_numpy(labels).long()
    shifts = ShiftImages(pixels=1, shape=(1, 8, 8))
    return DataSet(inputs[train], targets[train], inputs[test], targets[test], shifts)


def _mnist(path: str, normalize: Normalization) -> DataSet:
    arrays = _image_arrays("mnist", path, (28, 28))
    x_train, x_test = (normalize(arrays[key]).flatten(1) for key in ("x_train", "x_test"))
    y_train, y_test = _labels(arrays["y_train"]), _labels(arrays["y_test"])
    return DataSet(x_train, y_train, x_test, y_test, ShiftImages(shape=(1, 28, 28)))


def _cifar10(path: str, normalize: Normalization) -> DataSet:
    arrays = _image_arrays("cifar10", path, (32, 32, 3))
    # Stored height x width x channel; networks take channel x height x width.
    x_train, x_test = (
        normalize(arrays[key]).permute(0, 3, 1, 2).contiguous() for key in ("x_train", "x_test")
    )
    y_train, y_test = _labels(arrays["y_train"]), _labels(arrays["y_test"])
    return DataSet(x_train, y_train, x_test, y_test, ShiftImages(mirror=True))


def _labels(labels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _image_arrays(kind: str, path: str, shape: tuple[int, ...]) -> dict[str, NDArray[np.uint8]]:
    """Return the four arrays of an npz file of images, each image of ``shape``."""
    if not path:
        raise ImpossibleRequestError(f"{kind} needs its file: --data {kind}:PATH.npz")
    if not Path(path).is_file():
        raise ImpossibleRequestError(f"no file {path!r} for --data {kind}:PATH.npz")
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except (KeyError, ValueError, OSError) as error:
        raise CalibrationError(
            f"{path} is not an npz file with x_train, y_train, x_test and y_test: {error}"
        ) from error
    for key in ("x_train", "x_test"):
        found = arrays[key].shape[1:]
        if found != shape:
            raise CalibrationError(f"{path}: {key} holds images of {found}, {kind} has {shape}")
    return arrays


_SOURCES: Mapping[str, Callable[[str, Normalization], DataSet]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
}

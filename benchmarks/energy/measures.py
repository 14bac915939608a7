"""Energy missed, intervals that hold the test set's own error, correlations within groups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
_NORMAL = float(stats.norm.ppf(0.975))


def excess(energies: ArrayLike, bounds: ArrayLike) -> float:
    """Return by what share errors lie above their certified lower bounds, summed: both positive.

    Example:
        >>> excess([3.0, 3.0], [2.0, 3.0])
        0.2
    """
    return float(np.sum(energies) / np.sum(bounds) - 1.0)


def missed(energies: ArrayLike, bounds: ArrayLike) -> float | None:
    """Return the share of a possible decrease that was not found, summed: both at most 0.

    None where the bounds leave nothing to find.

    Example:
        >>> missed([-1.0, -2.0], [-2.0, -2.0])
        0.25
    """
    possible = float(np.sum(bounds))
    return 1.0 - float(np.sum(energies)) / possible if possible < 0 else None


def in_parts(values: ArrayLike, number: int) -> list[float]:
    """Return means of ``number`` parts of a test set, each of consecutive samples.

    Args:
        values: one for each test sample.
        number: at most; fewer where there are fewer values.
    """
    array = np.asarray(values, dtype=np.float64)
    return [float(part.mean()) for part in np.array_split(array, min(number, array.size))]


def short(values: ArrayLike) -> list[float]:
    """Return the values with six digits, as they are stored."""
    return [float(f"{value:.6g}") for value in np.asarray(values, np.float64)]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return 0.5 * (self.high - self.low)

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.half:.2g}"


def interval(parts: ArrayLike) -> Interval:
    """Return the mean of a figure and its 95 % interval, over seeds and over test samples.

    Both errors are added in quadrature: that of the mean over seeds (Student's t), and that of the
    test set, which all seeds share, so that more seeds do not make it less.

    Args:
        parts: means over parts of the test set, shape (seeds, parts). With one seed, only the test
            set's error is known; a difference of two runs gives the interval of a paired one.
    """
    array = np.atleast_2d(np.asarray(parts, dtype=np.float64))
    seeds, mean = len(array), float(array.mean())
    half = _NORMAL * standard_error(array.mean(axis=0))
    if seeds > 1:
        half = np.hypot(half, stats.t.ppf(0.975, seeds - 1) * standard_error(array.mean(axis=1)))
    return Interval(mean, mean - float(half), mean + float(half))


def standard_error(values: Floats) -> float:
    """Return the standard error of a mean; 0 for a single value, of which nothing is known."""
    return float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else 0.0


@dataclass(frozen=True)
class Rank:
    """Spearman's correlation of ``number`` pairs, and its p-value."""

    rho: float
    p_value: float
    number: int

    def __str__(self) -> str:
        return f"{self.rho:.2f} (n = {self.number})"


def spearman(x: ArrayLike, y: ArrayLike) -> Rank | None:
    """Return the rank correlation; None of fewer than three pairs, or of a constant side."""
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if first.size < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    found: Any = stats.spearmanr(first, second)
    return Rank(float(found.statistic), float(found.pvalue), int(first.size))


def spearman_within(
    groups: Sequence[Hashable], x: ArrayLike, y: ArrayLike
) -> dict[Hashable, Rank | None]:
    """Return `spearman` within each group, in order of appearance: pairs of two never meet.

    Example:
        >>> found = spearman_within("aaabbb", [1, 2, 3, 1, 2, 3], [9, 10, 11, 3, 2, 1])
        >>> [round(one.rho) for one in found.values()]
        [1, -1]
    """
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    places: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    return {group: spearman(first[own], second[own]) for group, own in places.items()}

"""Correction of a block's model of the loss for the optimism of its own minimum.

The minimum of an estimated function lies where the estimate errs downwards: the promised gain is
larger than the real one, the more so the more variables and the fewer samples there are. So the
samples come in halves. Each half chooses blocks and minimises its own model, and the other half,
which has seen none of that, says what that move d is worth (cross-fitting, Chernozhukov et al.,
arXiv 1608.00060, section 1). It decides on two things. The first is the ridge: that with the
largest gain on the other half. The second are two factors of what is left,

    gradient:   s = (g_other . d) / (g_own . d)       curvature:   k = (d.H_other d) / (d.H_own d)

All samples are twice as many as a half, and such errors fall with their number, so half of each
deviation from 1 is taken; s is at most 1 and k at least 1. Where samples were made from given
ones, a second factor is the ratio of the given samples' value to that of all: the model is then
of the loss on samples as they come. The corrected model s g.d + k/2 d.H d stays quadratic, and
its energy is what the sampler minimises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qprune.steps.anticipate import Anticipated, anticipated
from qprune.steps.formulate import Block, formulate
from solvers import LowRank, QuadraticProblem, Relax

#: Ridges that are tried, as multiples of the expansion's damping.
RIDGES = (0.3, 1.0, 3.0)
# Share of a half's deviation that is left with twice as many samples.
_LEFT = 0.5
# Limits of the factors for gradient and curvature, and of those to the given samples.
_LEAST, _MOST = np.array([0.05, 1.0]), np.array([1.0, 4.0])
_LEAST_GIVEN, _MOST_GIVEN = 0.25, 2.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """Corrections of a model; the default changes nothing.

    Attributes:
        gradient, curvature: factors for optimism, and to the given samples.
        diagonal: factor of the ridge to the given samples.
        ridge: as a multiple of the expansion's damping.
    """

    gradient: float = 1.0
    curvature: float = 1.0
    diagonal: float = 1.0
    ridge: float = 1.0


@dataclass(frozen=True, eq=False)
class View:
    """Gradient and curvature of a block and of the weights that move along, as samples give them.

    Attributes:
        gradient: shape (n + r,), the block first.
        factor: F, the curvature is F'F, shape (m, n + r).
    """

    gradient: Floats
    factor: Floats

    def left(self, size: int, ridge: float) -> Anticipated:
        """The model left for the block of ``size`` weights when the others move along."""
        if len(self.gradient) == size:
            return Anticipated(self.gradient, LowRank(self.factor), None)
        return anticipated(self.gradient, self.factor, size, ridge)


@dataclass(frozen=True, eq=False)
class Trial:
    """A block that one half has chosen.

    Attributes:
        block: its gradient does not matter.
        own, other: views of the two halves.
        given: view of the given samples of both halves; None where all samples are given.
    """

    block: Block
    own: View
    other: View
    given: View | None

    def seen(self, ridge: float) -> Seen:
        """With the others moving along at a ``ridge``."""
        if len(self.own.gradient) == len(self.block.indices):
            return self._alone
        return self._seen(ridge)

    @cached_property
    def _alone(self) -> Seen:
        # Nothing moves along: no ridge changes anything.
        return self._seen(1.0)

    def _seen(self, ridge: float) -> Seen:
        size = len(self.block.indices)
        return Seen(
            self.block,
            self.own.left(size, ridge).compact(),
            self.other.left(size, ridge),
            self.given.left(size, ridge) if self.given else None,
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """A `Trial` with what is left for the block alone."""

    block: Block
    own: Anticipated
    other: Anticipated
    given: Anticipated | None

    def minimum(self, found: Factors, ridge: float) -> Floats:
        """The best move of the half's own corrected model."""
        model, block = modelled(self.block, self.own, found, ridge)
        start = block.pruned[None]
        answer = Relax().sample_problem(model, initial_states=start, num_sweeps=0, seed=0)
        return np.where(answer.sample == 0, block.keep_value, 0.0) - block.current


def modelled(
    block: Block, left: Anticipated, found: Factors, ridge: float
) -> tuple[QuadraticProblem, Block]:
    """The corrected problem of a block, and the block with its gradient.

    Args:
        block: its gradient does not matter.
        left: gradient and curvature.
        found: the corrections.
        ridge: that of the expansion.
    """
    block = replace(block, gradient=left.gradient * found.gradient)
    ridge *= found.ridge * found.diagonal
    return formulate(block, left.curvature.scaled(found.curvature), ridge=ridge / 2), block


def factors(trials: Sequence[Trial], ridge: float) -> Factors:
    """The corrections that the halves find for each other.

    Args:
        trials: of both halves.
        ridge: that of the expansion.
    """
    best, found = np.inf, Factors()
    seen: list[Seen] = []
    moves: list[Floats] = []
    for multiple in RIDGES:
        tried = Factors(ridge=multiple)
        views = [trial.seen(multiple * ridge) for trial in trials]
        made = [view.minimum(tried, ridge) for view in views]
        unseen = sum(
            view.other.along(move) @ (1.0, 0.5) for view, move in zip(views, made, strict=True)
        )
        if unseen < best:
            best, found, seen, moves = float(unseen), tried, views, made
    found = _fitted(seen, moves, found)
    return _fitted(seen, [view.minimum(found, ridge) for view in seen], found)


def _fitted(seen: Sequence[Seen], moves: Sequence[Floats], found: Factors) -> Factors:
    own, other, given = np.zeros((3, 2))
    for view, move in zip(seen, moves, strict=True):
        both = view.own.along(move), view.other.along(move)
        own, other = own + both[0], other + both[1]
        given = given + (view.given.along(move) if view.given else sum(both) / 2)
    if not (own * (own + other)).all():
        return found
    optimism = np.clip(1 - (1 - other / own) * _LEFT, _LEAST, _MOST)
    natural = np.clip(2 * given / (own + other), _LEAST_GIVEN, _MOST_GIVEN)
    gradient, curvature = (optimism * natural).tolist()
    return replace(found, gradient=gradient, curvature=curvature, diagonal=float(natural[1]))

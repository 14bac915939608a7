"""Correction of a block's model of the loss for the optimism of its own minimum.

The minimum of an estimated function lies where the estimate errs downwards: the promised gain is
larger than the real one, the more so the more variables and the fewer samples there are. So the
samples come in halves. Each half chooses blocks and minimises its own model, and the other half,
which has seen none of that, says what that move d is worth (cross-fitting, Chernozhukov et al.,
arXiv 1608.00060, section 1). With m the change of the loss by each half's model,

    c = 1 - (1 - m_other(d) / m_own(d)) / 2

All samples are twice as many as a half, and such errors fall with their number, so half of the
deviation from 1 is taken. Where samples were made from given ones, c is multiplied by the ratio of
the given samples' m(d) to that of all: the model is then of the loss on samples as they come.

The whole model is multiplied by c, so that its energy, which the sampler minimises, is the gain to
be expected, and its minimum stays where it is. A model that is more cautious (a smaller gradient,
a larger ridge, chosen by the other half) gains more in one step on unseen samples, and less in a
run: its steps change fewer decisions, and the errors of steps on fresh samples cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qprune.steps.anticipate import Anticipated, anticipated
from qprune.steps.formulate import Block, formulate
from solvers import LowRank, QuadraticProblem, Relax

# Share of a half's deviation that is left with twice as many samples.
_LEFT = 0.5
# The least share of a model that is left, and limits of the ratio to the given samples.
_LEAST = 0.05
_LEAST_GIVEN, _MOST_GIVEN = 0.25, 2.0

Floats = NDArray[np.float64]
# Change of the loss by (g . d, d . H d).
_CHANGE = np.array([1.0, 0.5])


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

    def outcome(self, ridge: float) -> Floats:
        """(g . d, d . H d) of the own minimum d, as own, other and given samples see it, (3, 2)."""
        size = len(self.block.indices)
        own = self.own.left(size, ridge).compact()
        other = self.other.left(size, ridge)
        model, block = modelled(self.block, own, 1.0, ridge)
        start = block.pruned[None]
        answer = Relax().sample_problem(model, initial_states=start, num_sweeps=0, seed=0)
        move = np.where(answer.sample == 0, block.keep_value, 0.0) - block.current
        seen = own.along(move), other.along(move)
        given = self.given.left(size, ridge).along(move) if self.given else sum(seen) / 2
        return np.array([*seen, given])


def modelled(
    block: Block, left: Anticipated, share: float, ridge: float
) -> tuple[QuadraticProblem, Block]:
    """The corrected problem of a block, and the block with its gradient.

    Args:
        block: its gradient does not matter.
        left: gradient and curvature.
        share: factor of the model.
        ridge: that of the expansion.
    """
    block = replace(block, gradient=left.gradient * share)
    return formulate(block, left.curvature.scaled(share), ridge=share * ridge / 2), block


def kept_share(trials: Sequence[Trial], ridge: float) -> float:
    """The factor of a model that the halves find for each other.

    Args:
        trials: of both halves.
        ridge: that of the expansion.
    """
    found = sum((trial.outcome(ridge) for trial in trials), np.zeros((3, 2))) @ _CHANGE
    own, other, given = found.tolist()
    if not own < 0:
        return 1.0
    share = np.clip(1 - (1 - other / own) * _LEFT, _LEAST, 1.0)
    both = (own + other) / 2
    natural = np.clip(given / both, _LEAST_GIVEN, _MOST_GIVEN) if both < 0 else 1.0
    return float(share * natural)

"""Correction of a block's model of the loss for the optimism of its own minimum.

The minimum of an estimated function lies where the estimate errs downwards: the promised gain is
larger than the real one, the more so the more variables and the fewer samples there are. So the
samples come in halves. Each half chooses blocks, minimises its own model, and the other half,
which has seen none of that, says what gradient and curvature are along the move d found:

    gradient:   s = (g_other . d) / (g_own . d)       curvature:   k = (d.H_other d) / (d.H_own d)

(cross-fitting, Chernozhukov et al., arXiv 1608.00060, section 1). All samples are twice as many
as a half, and such errors fall with their number, so half of each deviation from 1 is taken; s
is at most 1 and k at least 1. Where samples were made from given ones, a second factor is the
ratio of the given samples' value to that of all: the model is then of the loss on samples as they
come. The corrected model s g.d + k/2 d.H d stays quadratic, and its energy
is what the sampler minimises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qprune.steps.formulate import Block, formulate
from solvers import Dense, LowRank, Relax

# Rounds of minimising with the factors found so far.
_ROUNDS = 2
# Share of a half's deviation that is left with twice as many samples.
_LEFT = 0.5
# Limits of the factors for gradient and curvature, and of those to the given samples.
_LEAST, _MOST = np.array([0.05, 1.0]), np.array([1.0, 4.0])
_LEAST_GIVEN, _MOST_GIVEN = 0.25, 2.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """Factors of a model's gradient and curvature; 1 changes nothing.

    Attributes:
        gradient, curvature: corrections for optimism, and to the given samples.
        damping: correction of the damping, which no half has chosen.
    """

    gradient: float = 1.0
    curvature: float = 1.0
    damping: float = 1.0


@dataclass(frozen=True, eq=False)
class View:
    """Gradient and curvature of a block as some samples give them.

    Attributes:
        gradient: shape (n,).
        curvature: of size n.
    """

    gradient: Floats
    curvature: Dense | LowRank

    def along(self, move: Floats) -> NDArray[np.float64]:
        """(g . d, d . H d)."""
        return np.array([self.gradient @ move, 2 * self.curvature.values(move[None])[0]])


@dataclass(frozen=True, eq=False)
class Trial:
    """A block that one half has chosen.

    Attributes:
        block: its gradient is the half's own.
        own, other: views of the two halves.
        given: view of the given samples of both halves; None where all samples are given.
    """

    block: Block
    own: View
    other: View
    given: View | None


def factors(trials: Sequence[Trial], ridge: float) -> Factors:
    """The factors that the halves find for each other.

    Args:
        trials: of both halves.
        ridge: as in `qprune.steps.formulate.formulate`.
    """
    found = Factors()
    for _ in range(_ROUNDS):
        own, other, given = np.zeros((3, 2))
        for trial in trials:
            move = _minimum(trial, found, ridge)
            seen = trial.own.along(move), trial.other.along(move)
            own, other = own + seen[0], other + seen[1]
            given = given + (trial.given.along(move) if trial.given else sum(seen) / 2)
        if not (own * (own + other)).all():
            return found
        optimism = np.clip(1 - (1 - other / own) * _LEFT, _LEAST, _MOST)
        natural = np.clip(2 * given / (own + other), _LEAST_GIVEN, _MOST_GIVEN)
        gradient, curvature = (optimism * natural).tolist()
        found = Factors(gradient, curvature, float(natural[1]))
    return found


def _minimum(trial: Trial, found: Factors, ridge: float) -> Floats:
    """The best move of a half's own corrected model."""
    block = replace(trial.block, gradient=trial.own.gradient * found.gradient)
    curvature = trial.own.curvature.scaled(found.curvature)
    problem = formulate(block, curvature, ridge=ridge * found.damping)
    answer = Relax().sample_problem(problem, initial_states=block.pruned[None], seed=0)
    return np.where(answer.sample == 0, block.keep_value, 0.0) - block.current

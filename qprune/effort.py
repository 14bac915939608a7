"""Default stages, rounds and samples of a run, by the cost of one pass.

The cost is counted, not timed, so that equal requests give equal masks on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Defaults of `qprune.prune`.

    Attributes:
        stages: steps up to the requested sparsity.
        rounds: expansions per stage.
        final_rounds: expansions at the last stage.
        samples_per_step: samples of one expansion.
        iterations: those of conjugate gradients at which compensation tries a step.
        curvature_share: share of the samples that compensation uses for the curvature.
    """

    stages: int
    rounds: int
    final_rounds: int
    samples_per_step: int
    iterations: tuple[int, ...]
    curvature_share: float


THOROUGH = Effort(20, 4, 20, 2400, (2, 4, 8, 16, 32), 1.0)
FRUGAL = Effort(10, 1, 5, 400, (2, 4), 0.5)

# Multiplications per sample from which a network counts as large: a pass over 2,400 samples
# then takes about a second on one core.
_LARGE = 4_000_000


def effort_for(multiplications: int) -> Effort:
    """Return the defaults for a network with this number of multiplications per sample."""
    return THOROUGH if multiplications < _LARGE else FRUGAL

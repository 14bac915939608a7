"""How much work a run spends where the caller does not say: less of it when passes are dear.

What a pass costs is counted, not timed, so that equal requests give equal masks on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Defaults of `qprune.prune`.

    Attributes:
        stages: rungs up to the asked sparsity.
        rounds: expansions per stage.
        final_rounds: expansions at the last stage.
        samples_per_step: samples of one expansion.
        iterations: of conjugate gradients at which compensation tries a step.
        curvature_share: share of the samples that compensation takes the curvature on.
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
    """The defaults for a network with so many multiplications per sample."""
    return THOROUGH if multiplications < _LARGE else FRUGAL

"""Acceptance: proposals are taken that lower the loss on samples that nothing was fitted to.

All proposals of an expansion, else the better half of them, and so on; the best one alone is
solved again at a higher price for every changed decision (`Trust`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qprune.steps.formulate import Block
from solvers import Answer, Fault, QuadraticProblem

# Attempts at one expansion's proposals: each halves them, or solves the last one again.
ATTEMPTS = 4


@dataclass(frozen=True)
class Trust:
    """Trust region in the form of a price, nats per changed decision.

    rho = real / predicted change (Conn, Gould, Toint, "Trust-Region Methods", section 6.1):
    the price rises when rho < `low` or the move is refused, and falls when rho > `high`.

    Args:
        price: initial price.
        low, high: thresholds of rho.
        factor: factor of each change of the price.
    """

    price: float = 0.0
    low: float = 0.25
    high: float = 0.75
    factor: float = 4.0

    def taken(self, predicted: float, real: float, flips: int) -> Trust:
        """Return the region after an accepted move."""
        rho = real / predicted if predicted < 0 else 0.0
        if rho < self.low:
            return self.raised(predicted, flips)
        return self.lowered() if rho > self.high else self

    def raised(self, predicted: float, flips: int) -> Trust:
        """Return it with a higher price, at least a tenth of the predicted gain per flip."""
        floor = 0.1 * -predicted / max(flips, 1)
        return self._with(max(self.price * self.factor, floor))

    def lowered(self) -> Trust:
        """Return it with a lower price, after a good prediction or when no decision changed."""
        return self._with(self.price / self.factor)

    def _with(self, price: float) -> Trust:
        return Trust(price, self.low, self.high, self.factor)


@dataclass(frozen=True, eq=False)
class Proposal:
    """A block, its model of the loss, and an answer.

    Attributes:
        block: the weights that are decided.
        model: of the loss.
        problem: the model, with the user's terms.
        answer: of a sampler; None until there is one.
        plain: the model without its correction; None where it is not corrected.
        around: indices of kept weights that move along, shape (r,).
        response: their moves by those of the block, shape (r, n).
    """

    block: Block
    model: QuadraticProblem
    problem: QuadraticProblem
    answer: Answer | None = None
    plain: QuadraticProblem | None = None
    around: Tensor | None = None
    response: NDArray[np.float64] | None = None

    @property
    def flips(self) -> int:
        """Decisions that the answer changes."""
        return 0 if self.answer is None else int((self.answer.sample != self.block.pruned).sum())

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Failures on the way to the answer."""
        return () if self.answer is None else self.answer.faults

    @property
    def predicted(self) -> float:
        """Change of the loss that the answer promises, nats."""
        return 0.0 if self.answer is None else self.model.energy(self.answer.sample)

    @property
    def uncorrected(self) -> float:
        """Change of the loss that the model without its correction promises, nats."""
        if self.answer is None or self.plain is None:
            return self.predicted
        return self.plain.energy(self.answer.sample)

    @property
    def extra(self) -> float:
        """Change of the user's terms, nats."""
        if self.answer is None or self.problem is self.model:
            return 0.0
        return self.problem.energy(self.answer.sample) - self.predicted


@dataclass(frozen=True)
class Verdict:
    """Changes of the loss by proposals, nats, on samples that nothing was fitted to.

    Attributes:
        at_once: change when they are carried out: what the models foretell.
        settled: change once kept weights have moved too: what decides. `at_once` if they do not.
    """

    at_once: float
    settled: float


class Trial(Protocol):
    """The model that proposals are tried on."""

    @property
    def exhausted(self) -> bool:
        """True if the run has to end."""
        ...

    def solve(self, proposals: Sequence[Proposal], price: float) -> list[Proposal]:
        """The proposals with answers at a ``price`` in nats per changed decision."""
        ...

    def judge(self, proposals: Sequence[Proposal], present: float) -> Verdict:
        """Their changes of a loss of ``present`` nats; the model holds them afterwards."""
        ...

    def undo(self, proposals: Sequence[Proposal]) -> None:
        """Write the values from before the proposals into the model."""
        ...

    def note(
        self,
        proposals: Sequence[Proposal],
        accepted: bool,
        verdict: Verdict,
        loss: float,
        price: float,
    ) -> None:
        """Add a step to the journal, ``loss`` being the one afterwards."""
        ...


_NOTHING = Verdict(0.0, 0.0)


def accept(
    trial: Trial, proposals: Sequence[Proposal], trust: Trust, present: float
) -> tuple[Trust, list[Proposal]]:
    """The trust afterwards, and the proposals that were taken: none where all were refused.

    Args:
        trial: the model; it holds the proposals that were taken afterwards.
        proposals: disjoint blocks with their problems.
        trust: before.
        present: the loss before, nats, on the samples that judge.
    """
    solved = trial.solve(proposals, trust.price)
    trying = sorted((p for p in solved if p.flips), key=lambda p: p.predicted)
    if not trying:
        trial.note(solved, False, _NOTHING, present, trust.price)
        return trust.lowered(), []
    for attempt in range(1, ATTEMPTS + 1):
        predicted, flips = sum(p.predicted for p in trying), sum(p.flips for p in trying)
        verdict = trial.judge(trying, present)
        if verdict.settled + sum(p.extra for p in trying) < 0:
            trial.note(trying, True, verdict, present + verdict.settled, trust.price)
            return trust.taken(predicted, verdict.at_once, flips), trying
        trial.undo(trying)
        trial.note(trying, False, verdict, present, trust.price)
        if trial.exhausted:
            break
        if len(trying) > 1:
            trying = trying[: len(trying) // 2]
            continue
        trust = trust.raised(predicted, flips)
        if attempt == ATTEMPTS:
            break
        solved = trial.solve(trying, trust.price)
        trying = [p for p in solved if p.flips]
        if not trying:
            # A step of its own, where there are faults to tell: none may follow.
            if any(p.faults for p in solved):
                trial.note(solved, False, _NOTHING, present, trust.price)
            break
    return trust, []

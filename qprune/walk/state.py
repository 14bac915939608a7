"""State of a run, and its position in the list of actions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qprune.network.weights import Weights
from qprune.steps.accept import Trust


@dataclass(frozen=True, eq=False)
class State:
    """Mask and values of all weights, and the trust in the model of the loss.

    Attributes:
        mask: True = kept, shape (N,).
        trust: how far the quadratic model is believed.
        values: weights, shape (N,), exactly 0 where pruned; None while the model alone holds them,
            until an action across the network asks.
        resting: number of the first round in which a weight is offered again, shape (N,), int32;
            None until a round of blocks asks.
        statistics: running means and variances of BatchNorm
            (`qprune.network.statistics.statistics_of`); None while they are the dense network's.
    """

    mask: Tensor
    trust: Trust = field(default_factory=Trust)
    values: Tensor | None = None
    resting: Tensor | None = None
    statistics: Tensor | None = None

    @classmethod
    def dense(cls, weights: Weights) -> State:
        """Nothing is pruned."""
        return cls(torch.ones(weights.size, dtype=torch.bool))

    def held(self, weights: Weights) -> Tensor:
        """The values; read from the model where it alone holds them."""
        return weights.read() if self.values is None else self.values

    def full(self, weights: Weights) -> FullState:
        """With values and rests, made where they are missing."""
        resting = self.resting
        if resting is None:
            resting = torch.zeros(weights.size, dtype=torch.int32)
        return FullState(self.mask, self.trust, self.held(weights), resting, self.statistics)


@dataclass(frozen=True, eq=False)
class FullState(State):
    """A state with values and rests, as actions across the network need it."""

    values: Tensor = field(default_factory=lambda: torch.empty(0))
    resting: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))

    def full(self, weights: Weights) -> FullState:
        """Itself."""
        return self


@dataclass(frozen=True, eq=False)
class Progress:
    """Position of a run between two actions.

    Attributes:
        position: index of the next action.
        state: mask, trust, values.
        before: the state before the last action that changed it, to go back to.
        batch_size: samples in one pass; halved where memory did not suffice.
    """

    position: int
    state: State
    before: State
    batch_size: int

    @classmethod
    def beginning(cls, state: State, batch_size: int) -> Progress:
        """Before the first action."""
        return cls(0, state, state, batch_size)

    def after(self, state: State) -> Progress:
        """The same position with another state."""
        changed = state is not self.state
        return replace(self, state=state, before=self.state if changed else self.before)

"""A run's fixed surroundings, shared by all of its actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from qprune.moving.compensate import Compensate
from qprune.moving.guards import Dense
from qprune.network.groups import Groups
from qprune.network.statistics import write_statistics
from qprune.network.weights import Weights
from qprune.objective.samples import Objective
from qprune.steps.solve import BlockObserver
from qprune.walk.journal import Journal
from qprune.walk.state import State
from solvers import Ask

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that stays fixed during a run.

    Attributes:
        objective: the loss to fit on.
        judge: the loss that decides what is taken, on samples that nothing is fitted to.
        groups: exact counts.
        dense: the weights before anything was pruned.
        compensate: how kept weights move; None = they stay.
        ask: the sampler, made ready.
        journal: the steps so far.
        observe_blocks: called with every problem that the sampler has answered.
        executor: solves blocks with ``map``; None = one after the other.
        generator: of all random choices outside the samplers.
        seed: of the run.
    """

    objective: Objective
    judge: Objective
    groups: Groups
    dense: Dense
    compensate: Compensate | None
    ask: Ask
    journal: Journal
    observe_blocks: tuple[BlockObserver, ...]
    executor: Any
    generator: torch.Generator
    seed: int

    @property
    def weights(self) -> Weights:
        """The targeted weights."""
        return self.objective.weights

    def batched(self, batch_size: int) -> Run:
        """The same with another number of samples in one pass."""
        if batch_size == self.objective.batch_size:
            return self
        objective = replace(self.objective, batch_size=batch_size)
        return replace(self, objective=objective, judge=replace(self.judge, batch_size=batch_size))

    def once(self, function: Callable[[], T]) -> T:
        """Return on every process the result of ``function`` on the first."""
        return self.objective.samples.ranks.once(function)

    def sparsity(self, state: State) -> float:
        """Share of the targeted weights that are pruned."""
        return 1 - int(state.mask.sum()) / self.weights.size

    def put_back(self, state: State) -> None:
        """Write the state's values into the model.

        Where the model alone held them, the weights that the state has not pruned get their dense
        values again.
        """
        if state.statistics is not None:
            write_statistics(self.objective.model, state.statistics)
        if state.values is not None:
            self.weights.write(state.values)
            return
        if self.weights.sharded:  # Nothing is pruned yet where such a model alone has the values.
            self.dense.put_back()
            return
        masks = self.weights.split(state.mask)
        with torch.no_grad():
            for weight, mask, dense in zip(self.weights, masks, self.dense.tensors, strict=True):
                if bool(mask.all()):
                    weight.part(weight.parameter).copy_(dense)

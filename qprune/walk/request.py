"""What a run is asked: the arguments of `qprune.prune`, and which numbers make no sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from qprune.cost import Effort
from qprune.data.augment import Augmentation
from qprune.errors import ImpossibleRequestError
from qprune.network.groups import Budget, KeepNofM
from qprune.network.patterns import Pattern
from qprune.objective.curvature import Curvature
from qprune.objective.losses import Loss
from qprune.steps.compensate import Compensate
from qprune.steps.formulate import Terms
from qprune.steps.select import Select
from qprune.steps.start import Pruner, Start
from solvers import FaultPolicy
from solvers.host.ranges import MAX_STEPS, Count, FurtherSteps, Number, Pair, Seed, Steps, checked

_WHOLE_NUMBERS = {
    "num_blocks": Number,
    "seed": Seed,
    "block_size": Pair,
    "max_steps": Count,
    "batch_size": Number,
    "samples_per_step": Number,
    "stages": Steps,
    "rounds": FurtherSteps,
    "final_rounds": FurtherSteps,
}
_ALWAYS_GIVEN = ("num_blocks", "seed")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `qprune.prune`, as they were given."""

    sparsity: float | None
    density: float | None
    start: Start | Pruner | str
    budget: Budget | str
    mask_structure: KeepNofM | str | None
    targets: tuple[Pattern, ...] | None
    ignore: tuple[Pattern, ...]
    loss: Loss
    curvature: Curvature | str
    select: Select
    sampler: Any
    sampler_options: Mapping[str, Any]
    care: FaultPolicy
    block_size: int | None
    num_blocks: int
    stages: int | None
    rounds: int | None
    final_rounds: int | None
    compensate: bool | Compensate
    augment: Augmentation | str | None
    terms: Terms | None
    damping: float
    accept_share: float
    samples_per_step: int | None
    batch_size: int | None
    seed: int
    max_seconds: float | None
    max_steps: int | None
    max_memory: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Every argument as JSON has it; objects by their representation."""
        plain = (str, int, float, bool, type(None))
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: value
            if isinstance(value, plain)
            else [item if isinstance(item, plain) else repr(item) for item in value]
            if isinstance(value, tuple)
            else dict(value)
            if isinstance(value, Mapping)
            else repr(value)
            for name, value in values.items()
        }

    def effort(self, usual: Effort) -> Effort:
        """The ``usual`` effort with what was asked in its place.

        Raises:
            ImpossibleRequestError: it is more than can end.
        """
        asked = {name: getattr(self, name) for name in ("stages", "rounds", "samples_per_step")}
        asked["final_rounds"] = self.final_rounds
        if self.final_rounds is None and self.rounds is not None:
            asked["final_rounds"] = 5 * self.rounds
        effort = replace(usual, **{n: value for n, value in asked.items() if value is not None})
        expansions = (effort.stages - 1) * effort.rounds + effort.final_rounds
        if expansions > MAX_STEPS:
            raise ImpossibleRequestError(
                f"{effort.stages:,} stages of {effort.rounds:,} rounds, {effort.final_rounds:,} in "
                f"the last one, are {expansions:,} expansions; a run has at most {MAX_STEPS:,}"
            )
        return effort

    def check(self) -> None:
        """Refuse numbers that no run can be made of.

        Raises:
            ImpossibleRequestError: names the argument, its value and what it may be.
        """
        for name, kind in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if value is None and name not in _ALWAYS_GIVEN:
                continue
            try:
                checked(kind, value, name)
            except ValueError as error:
                raise ImpossibleRequestError(str(error)) from error
        if not 0 < self.accept_share < 1:
            raise ImpossibleRequestError(
                f"accept_share must lie between 0 and 1, not {self.accept_share!r}"
            )
        if self.max_seconds is not None and not self.max_seconds >= 0:
            raise ImpossibleRequestError(
                f"max_seconds must be at least 0, not {self.max_seconds!r}"
            )
        if self.max_memory is not None and not self.max_memory > 0:
            raise ImpossibleRequestError(
                f"max_memory must be more than 0 bytes, not {self.max_memory!r}"
            )

"""What a run reports while it goes and when it ends: frozen, JSON-friendly values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qprune.estimate import Estimate


@dataclass(frozen=True)
class Fault:
    """Something that went wrong and was got over.

    Attributes:
        kind: "sampler" (it raised, or its answer was none), "timeout", "crash", "wrong counts",
            "wrong energies", "out of memory", "not finite" or "worker".
        message: what happened, in one line.
        remedy: what was done instead.
        block: number of the block in its round; None where there is none.
    """

    kind: str
    message: str
    remedy: str
    block: int | None = None


@dataclass(frozen=True)
class BlockRecord:
    """One block of one step.

    Attributes:
        num_variables: size of the block.
        num_candidates_kept: how many of them were kept before the step.
        layers: variables by layer name.
        sampler: the sampler's name.
        predicted: change of the loss that the quadratic model promises, nats.
        lower_bound: no sample of this block promises less (-inf when unknown).
        flips: decisions that the best sample changes.
        seconds: wall time of the sampler.
        info: what else the sampler said (num_reads, repaired, proved, qpu_access_time, ...).
    """

    num_variables: int
    num_candidates_kept: int
    layers: Mapping[str, int]
    sampler: str
    predicted: float
    lower_bound: float
    flips: int
    seconds: float
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One proposal put to the acceptance split, whether taken or not.

    Attributes:
        index: 0, 1, 2, ... over the whole run.
        stage: which rung of the sparsity ladder, from 0.
        round: which expansion within the stage, from 0.
        kind: "start" (weights pruned to reach the stage's sparsity), "blocks" (restore or
            prune by the sampler), "compensate" (kept weights moved) or "rollback" (the last
            change undone because the loss was no longer finite).
        sparsity: share of targeted weights that are zero after the step.
        accepted: whether the proposal was taken.
        predicted: predicted change of the loss, nats; None where there is no model of it.
        real: measured change of the loss on the acceptance split, nats.
        loss: loss on the acceptance split after the step, nats.
        fit_loss: loss on the split that the step was fitted on, before it, nats.
        flips: decisions changed by what was taken.
        price: trust-region price per flip, nats.
        blocks: the blocks solved for this step.
        seconds: wall time by phase: select, curvature, formulate, solve, accept, compensate.
        cpu_seconds: process CPU time of the whole step.
        faults: what went wrong since the step before, and was got over.
    """

    index: int
    stage: int
    round: int
    kind: str
    sparsity: float
    accepted: bool
    predicted: float | None
    real: float
    loss: float
    fit_loss: float
    flips: int
    price: float
    blocks: tuple[BlockRecord, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    faults: tuple[Fault, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` takes."""
        return asdict(self)


@dataclass(frozen=True)
class Score:
    """How good a network is on data: accuracy (share of right labels; None without) and loss."""

    accuracy: float | None
    loss: float


@dataclass(frozen=True)
class LayerRecord:
    """One targeted tensor: its name, shape, and how many of its weights are zero."""

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_pruned: int

    @property
    def sparsity(self) -> float:
        """Share of the layer's weights that are zero."""
        return self.num_pruned / self.num_weights


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        asked_sparsity: what was asked for.
        achieved_sparsity: share of targeted weights that are zero.
        layers: every targeted tensor.
        steps: every step, in order.
        settings: what the run was asked, JSON-friendly.
        seed: the run's seed.
        seconds: wall time.
        cpu_seconds: process CPU time.
        stopped: "done", "max_seconds", "max_steps" or "interrupted".
        dense, start, final: scores on test data, when `evaluate` was given: the dense network,
            the first pass alone at the final sparsity, and the pruned network.
        loss: what was kept small, and what the outputs were taken for.
    """

    asked_sparsity: float
    achieved_sparsity: float
    layers: tuple[LayerRecord, ...]
    steps: tuple[Step, ...]
    settings: Mapping[str, Any]
    seed: int
    seconds: float
    cpu_seconds: float
    stopped: str = "done"
    dense: Score | None = None
    start: Score | None = None
    final: Score | None = None
    estimate: Estimate | None = None
    peak_memory: int = 0
    loss: str = ""

    @property
    def num_accepted(self) -> int:
        """How many steps were taken."""
        return sum(step.accepted for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` takes."""
        return asdict(self) | {"num_accepted": self.num_accepted}


Observer = Callable[[Step], None]
"""Called with every `Step` as it happens; progress bars, journals and reports are observers."""

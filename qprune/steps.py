"""What a run reports while it goes and when it ends: frozen, JSON-friendly values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qprune.estimate import Estimate

#: How many names a line lists before it says how many more there are.
_LISTED = 6


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
    """One targeted tensor.

    Attributes:
        name: the parameter's name, without ``.weight`` where it ends so.
        shape: of the tensor.
        num_weights: how many it has.
        num_pruned: of those, pruned by the mask.
        num_zero: of those, zero at the end; more than the pruned ones where kept weights were
            zero from the beginning. None in files of versions that did not count them.
        parameter: the parameter's name in the state dict.
        input_groups: 0 where the outputs are its first dimension; else it is stored inputs first,
            in so many groups.
        gradients: how its per-sample gradients were found, in a few words.
    """

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_pruned: int
    num_zero: int | None = None
    parameter: str = ""
    input_groups: int = 0
    gradients: str = ""

    def __post_init__(self) -> None:
        if not self.parameter:
            # As files of earlier versions have it: each record was one module's weight.
            object.__setattr__(self, "parameter", f"{self.name}.weight" if self.name else "weight")

    @property
    def sparsity(self) -> float:
        """Share of the layer's weights that are zero."""
        return self.num_pruned / self.num_weights


@dataclass(frozen=True)
class LeftDense:
    """A tensor of two or more dimensions that is not pruned.

    Attributes:
        name: the parameter's.
        size: number of weights.
        reason: why it stays dense.
        asked: whether the request says so.
    """

    name: str
    size: int
    reason: str
    asked: bool = False


@dataclass(frozen=True)
class Coverage:
    """The share of a model that is targeted.

    Attributes:
        targeted: number of weights that are targeted.
        parameters: of the model, each tensor once.
        vectors: of those, numbers in biases, norms and other vectors, which are never pruned.
        left: tensors that stay dense.
    """

    targeted: int
    parameters: int
    vectors: int
    left: tuple[LeftDense, ...] = ()

    @property
    def unasked(self) -> tuple[LeftDense, ...]:
        """What stays dense though nobody asked for it."""
        return tuple(tensor for tensor in self.left if not tensor.asked)

    def __str__(self) -> str:
        """One line: ``targets 8,768 of 17,962 parameters (49 %); left dense: ...``."""
        share = 100 * self.targeted / max(1, self.parameters)
        line = f"targets {self.targeted:,} of {self.parameters:,} parameters ({share:.3g} %)"
        return f"{line}; left dense: {self.listed()}"

    def listed(self, tensors: Sequence[LeftDense] | None = None) -> str:
        """What is left dense, in words, the largest tensors first."""
        chosen = sorted(self.left if tensors is None else tensors, key=lambda t: -t.size)
        told = [f"{t.name} ({t.size:,}, {t.reason})" for t in chosen[:_LISTED]]
        rest = chosen[_LISTED:]
        if rest:
            told.append(f"{len(rest)} more tensors ({sum(t.size for t in rest):,})")
        if tensors is None and self.vectors:
            told.append(f"biases and other vectors ({self.vectors:,})")
        return ", ".join(told) or "nothing"


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
        estimate: what the run was said to need.
        peak_memory: the most that the process held, bytes.
        coverage: what was targeted and what was left dense.
        loss: what was kept small, in words, and what the outputs were taken for.
        zeros_before: targeted weights that were zero before the run; those that the mask does not
            prune are kept zeros.
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
    coverage: Coverage | None = None
    loss: str = ""
    zeros_before: int = 0

    @property
    def num_accepted(self) -> int:
        """How many steps were taken."""
        return sum(step.accepted for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` takes."""
        return asdict(self) | {"num_accepted": self.num_accepted}


Observer = Callable[[Step], None]
"""Called with every `Step` as it happens; progress bars, journals and reports are observers."""

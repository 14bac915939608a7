"""Records of a run: steps and report, frozen and JSON-friendly."""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from solvers import Fault

#: Largest number of names in one line.
_LISTED = 6


@dataclass(frozen=True)
class BlockRecord:
    """Record of one block of one step.

    Attributes:
        num_variables: size of the block.
        num_candidates_kept: number of them that were kept before the step.
        layers: variables by layer name.
        sampler: the sampler's name.
        predicted: change of the loss predicted by the quadratic model, nats.
        lower_bound: lower bound of it over all samples of this block (-inf when unknown).
        flips: decisions that the best sample changes.
        seconds: wall time of the sampler.
        info: further information from the sampler (num_reads, repaired, proved, ...).
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
class LayerRecord:
    """Record of one targeted tensor.

    Attributes:
        name: the parameter's name, without ``.weight`` where it ends so.
        shape: shape of the tensor.
        num_weights: number of its weights.
        num_pruned: number of them pruned by the mask.
        num_zero: number of them zero at the end, kept weights that were zero before the run
            included. None in files of versions that did not count them.
        parameter: the parameter's name in the state dict.
        input_groups: 0 if its outputs are the first dimension; else the number of groups of a
            tensor stored inputs first.
        gradients: source of its per-sample gradients, in a few words.
        error: output error as a share of the dense outputs' energy; of layer-wise runs.
        tokens: how many the statistics of its inputs are from; of layer-wise runs.
        seconds, cpu_seconds: wall and process CPU time of the solve; of layer-wise runs.
    """

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_pruned: int
    num_zero: int | None = None
    parameter: str = ""
    input_groups: int = 0
    gradients: str = ""
    error: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.parameter:
            # In files of earlier versions each record is one module's weight.
            object.__setattr__(self, "parameter", f"{self.name}.weight" if self.name else "weight")

    @property
    def sparsity(self) -> float:
        """Share of the layer's weights that are zero."""
        return self.num_pruned / self.num_weights


@dataclass(frozen=True)
class Step:
    """Record of one proposal tested on the acceptance split, accepted or not.

    Attributes:
        index: 0, 1, 2, ... over the whole run.
        stage: step of the sparsity schedule, from 0.
        round: expansion within the stage, from 0.
        kind: "start" (weights pruned to reach the stage's sparsity), "blocks" (restore or
            prune by the sampler), "compensate" (kept weights moved), "block" (a transformer block
            pruned layer by layer) or "rollback" (the last change undone because the loss was no
            longer finite).
        sparsity: share of targeted weights that are zero after the step.
        accepted: True if the proposal was taken.
        predicted: predicted change of the loss, nats; None without a prediction.
        real: measured change of the loss on the acceptance split, nats.
        at_once: the part of it that came before kept weights moved, which `predicted` foretells;
            None without a prediction.
        uncorrected: prediction of the model without its correction for optimism
            (`qprune.steps.crossfit`), nats; None without a prediction.
        loss: loss on the acceptance split after the step, nats.
        fit_loss: loss on the fitting split before the step, nats.
        flips: number of decisions changed.
        price: trust-region price per flip, nats.
        blocks: the blocks solved for this step.
        seconds: wall time by phase: select, curvature, formulate, solve, accept, compensate.
        cpu_seconds: process CPU time of the whole step.
        faults: failures since the step before from which the run recovered.
        layers: the matrices of a step of kind "block", layer by layer.
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
    layers: tuple[LayerRecord, ...] = ()
    at_once: float | None = None
    uncorrected: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes."""
        return asdict(self)


@dataclass(frozen=True)
class Score:
    """Score of a network on data.

    Attributes:
        accuracy: share of right labels; None without labels of classes.
        loss: mean loss.
        perplexity: of a causal language model, the exponential of its loss; None for others.
    """

    accuracy: float | None
    loss: float
    perplexity: float | None = None


@dataclass(frozen=True)
class LeftDense:
    """Tensor of two or more dimensions that is not pruned.

    Attributes:
        name: the parameter's name.
        size: number of weights.
        reason: reason why it stays dense.
        asked: True if the request left it out.
    """

    name: str
    size: int
    reason: str
    asked: bool = False


@dataclass(frozen=True)
class Coverage:
    """Targeted share of a model.

    Attributes:
        targeted: number of weights that are targeted.
        parameters: number of parameters of the model, each tensor once.
        vectors: number of those in biases, norms and other vectors, which are never pruned.
        left: tensors that stay dense.
    """

    targeted: int
    parameters: int
    vectors: int
    left: tuple[LeftDense, ...] = ()

    @property
    def unasked(self) -> tuple[LeftDense, ...]:
        """Tensors that stay dense without a request."""
        return tuple(tensor for tensor in self.left if not tensor.asked)

    def __str__(self) -> str:
        """Return one line: ``targets 8,768 of 17,962 parameters (49 %); left dense: ...``."""
        share = 100 * self.targeted / max(1, self.parameters)
        line = f"targets {self.targeted:,} of {self.parameters:,} parameters ({share:.3g} %)"
        return f"{line}; left dense: {self.listed()}"

    def listed(self, tensors: Sequence[LeftDense] | None = None) -> str:
        """Return text that names dense tensors, the largest first."""
        chosen = sorted(self.left if tensors is None else tensors, key=lambda t: -t.size)
        told = [f"{t.name} ({t.size:,}, {t.reason})" for t in chosen[:_LISTED]]
        rest = chosen[_LISTED:]
        if rest:
            told.append(f"{len(rest)} more tensors ({sum(t.size for t in rest):,})")
        if tensors is None and self.vectors:
            told.append(f"biases and other vectors ({self.vectors:,})")
        return ", ".join(told) or "nothing"


@dataclass(frozen=True)
class Part:
    """Part of the memory, or of the time.

    Attributes:
        what: short description.
        amount: bytes, or seconds.
        remedy: request that makes it smaller.
    """

    what: str
    amount: float
    remedy: str = ""


@dataclass(frozen=True)
class Estimate:
    """Memory and time of a run.

    Attributes:
        present: bytes of the process before the run: interpreter, libraries, model, data.
        before: peak bytes of the process so far.
        memory: parts added at the peak, largest first.
        time: seconds, largest first.
        unknown: the part whose time cannot be estimated; empty where there is none.
    """

    present: float
    before: float
    memory: tuple[Part, ...]
    time: tuple[Part, ...]
    unknown: str = ""

    @property
    def more(self) -> float:
        """Bytes needed beyond those that the process holds."""
        return sum(part.amount for part in self.memory)

    @property
    def peak_memory(self) -> float:
        """Peak bytes of the process."""
        return max(self.before, self.present + self.more)

    @property
    def seconds(self) -> float:
        """Seconds from the start to the mask."""
        return sum(part.amount for part in self.time)

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes."""
        totals = {"peak_memory": self.peak_memory, "seconds": self.seconds}
        return totals | asdict(self)

    def __str__(self) -> str:
        """Return one line: ``needs about 1.2 GB (most of it ...) and 40 s (most of it ...)``."""
        held = Part("the process as it is, with model and data", self.present)
        if self.before > self.present + self.more:
            held = Part("what loading took", self.before)
        memory = max((held, *self.memory[:1]), key=lambda part: part.amount).what
        line = f"needs about {in_bytes(self.peak_memory)} (most of it {memory})"
        if self.time:
            line += f" and {in_seconds(self.seconds)} (most of it {self.time[0].what})"
        return line + (f", and {self.unknown}" if self.unknown else "")


def in_bytes(number: float) -> str:
    """Format bytes.

    Example:
        >>> in_bytes(1234567)
        '1.23 MB'
    """
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB" if number < 999.5 else f"{number / 1000:.3g} TB"


def in_seconds(number: float) -> str:
    """Format seconds roughly: ``0.4 s``, ``40 s``, ``12 min``, ``3.5 h``, ``2 days``."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if number >= 2 * size:
            return f"{number / size:.2g} {unit}"
    return f"{number:.2g} s"


@dataclass(frozen=True)
class Promise:
    """The share of predictions that came true, on samples that nothing was fitted to.

    Attributes:
        steps: number of predictions of a gain, taken or not.
        ratio: median of real by predicted change of the loss, before kept weights moved.
        uncorrected: the same for the same answers, with the change that the models without their
            correction for optimism predict.
        correlation: Pearson's, of real and predicted change; None where it is undefined.
    """

    steps: int
    ratio: float
    uncorrected: float
    correlation: float | None

    def __str__(self) -> str:
        """In words."""
        before = f", {self.uncorrected:.2f} without correction"
        return (
            f"{self.ratio:.2f} of the predicted change came true (median of {self.steps} "
            f"predictions{'' if self.uncorrected == self.ratio else before})"
        )

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Promise | None:
        """That of a run's steps; None where nothing was predicted.

        Example:
            >>> print(Promise.of([]))
            None
        """
        told = [
            (step.predicted, step.at_once, step.uncorrected or step.predicted)
            for step in steps
            if step.predicted is not None and step.predicted < 0
            if step.at_once is not None and math.isfinite(step.at_once)
        ]
        if not told:
            return None
        predicted, real, without = zip(*told, strict=True)
        varies = len(set(predicted)) > 1 and len(set(real)) > 1
        return cls(
            steps=len(told),
            ratio=statistics.median(map(operator.truediv, real, predicted)),
            uncorrected=statistics.median(map(operator.truediv, real, without)),
            correlation=statistics.correlation(predicted, real) if varies else None,
        )


@dataclass(frozen=True)
class Report:
    """Report of a run.

    Attributes:
        asked_sparsity: requested sparsity.
        achieved_sparsity: share of targeted weights that are zero.
        layers: every targeted tensor.
        steps: every step, in order.
        settings: settings of the run, JSON-friendly.
        seed: the run's seed.
        seconds: wall time.
        cpu_seconds: process CPU time.
        stopped: "done", "max_seconds", "max_steps" or "interrupted".
        dense, start, final: scores on test data, when `evaluate` was given: the dense network,
            the first pass alone at the final sparsity, and the pruned network.
        estimate: estimate of memory and time before the run.
        peak_memory: peak bytes of the process.
        coverage: targeted and dense tensors.
        loss: the loss and the kind of outputs, in words.
        zeros_before: targeted weights that were zero before the run; those that the mask does
            not prune are kept zeros.
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
        """Number of accepted steps."""
        return sum(step.accepted for step in self.steps)

    @property
    def promise(self) -> Promise | None:
        """The share of predictions that came true; None where nothing was predicted."""
        return Promise.of(self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes."""
        return asdict(self) | {"num_accepted": self.num_accepted}


Observer = Callable[[Step], None]
"""Callback for every `Step` as it happens, for progress bars, journals and reports."""


T = TypeVar("T")


@dataclass(frozen=True)
class ScorePoint:
    """Score of the network on test data after a step."""

    step: int
    score: Score

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ScorePoint:
        """Return the score in ``record``: the inverse of `to_json`.

        Raises:
            ValueError: the record has another form.
        """
        values = _named(cls, record)
        score = _with_nan(_named(Score, values["score"]), ("loss",))
        return _valid(_POINT, values | {"score": score})


def step_from_json(record: Mapping[str, Any]) -> Step:
    """Return the step in a record from `Step.to_json` and `strict_json`.

    Raises:
        ValueError: the record has another form; names the field.
    """
    return _valid(_STEP, _plain_step(record))


def report_from_json(record: Mapping[str, Any]) -> Report:
    """Return the report in a record from `Report.to_json` and `strict_json`.

    Raises:
        ValueError: the record has another form; names the field.
    """
    given = _fields(record)
    given.pop("num_accepted", None)
    given.setdefault("loss", "")  # Missing in older runs.
    values = _named(Report, given)
    for name in ("dense", "start", "final"):
        if values.get(name) is not None:
            values[name] = _with_nan(_named(Score, values[name]), ("loss",))
    values["layers"] = [_named(LayerRecord, layer) for layer in _items(values["layers"])]
    values["steps"] = [_plain_step(step) for step in _items(values["steps"])]
    report = _valid(_REPORT, values)
    for layer in report.layers:
        size = math.prod(layer.shape)
        if len(layer.shape) < 2 or min(layer.shape) < 1 or layer.num_weights != size:
            raise ValueError(f"layer {layer.name!r}: {layer.num_weights} weights in {layer.shape}")
        if not 0 <= layer.num_pruned <= size:
            raise ValueError(f"layer {layer.name!r}: {layer.num_pruned} weights are pruned")
    return report


def _plain_step(record: Any) -> dict[str, Any]:
    values = _named(Step, record)
    values["blocks"] = [_plain_block(block) for block in _items(values.get("blocks", ()))]
    values["faults"] = [_named(Fault, fault) for fault in _items(values.get("faults", ()))]
    values["layers"] = [_named(LayerRecord, layer) for layer in _items(values.get("layers", ()))]
    return _with_nan(values, ("real", "loss", "fit_loss", "price"))


def _plain_block(record: Any) -> dict[str, Any]:
    values = _named(BlockRecord, record)
    return values | ({"lower_bound": -math.inf} if values["lower_bound"] is None else {})


def _with_nan(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    nulls = {name: math.nan for name in names if values.get(name, 0) is None}
    return {**values, **nulls}


def _named(kind: type, record: Any) -> dict[str, Any]:
    """Return the record's values, which must match the fields of ``kind`` exactly."""
    values, known = _fields(record), {field.name: field for field in fields(kind)}
    # Fields of later versions have defaults, since older files lack them.
    needed = {
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING
    }
    wrong = sorted((set(values) - set(known)) | (needed - set(values)))
    if wrong:
        what = "is missing" if wrong[0] in known else "is unknown"
        raise ValueError(f"{wrong[0]!r:.60} {what} in a {kind.__name__}")
    return values


def _fields(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"a record was expected, not {record!r:.60}")
    return dict(record)


def _items(records: Any) -> list[Any]:
    if not isinstance(records, list | tuple):
        raise ValueError(f"a list of records was expected, not {records!r:.60}")
    return list(records)


def _valid(kind: TypeAdapter[T], values: Mapping[str, Any]) -> T:
    try:
        return kind.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Input ")
        raise ValueError(f"{where} {message}, not {first['input']!r:.60}") from error


_STEP, _REPORT, _POINT = TypeAdapter(Step), TypeAdapter(Report), TypeAdapter(ScorePoint)

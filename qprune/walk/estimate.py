"""What a walk will need, counted from its numbers.

Memory: the vectors over all weights, the samples, the traces of an expansion, a batch's
activations, the blocks' factors. Time: passes times what one was seen to take.

What a run is going to do, and what it will need: a few passes are made and timed.

Nothing is decided by the clock: the estimate is stated, and the run is the same without it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from qprune.cost import Effort, Estimate, Part, Pass, Phase, Tally, estimate, gauged
from qprune.data import augment as selftext
from qprune.data.augment import Augmentation, OwnText
from qprune.data.calibration import Calibration, plain
from qprune.data.inputs import AnyInputs, tensors_of
from qprune.errors import CalibrationError, QpruneError
from qprune.network.weights import Layers
from qprune.objective import fisher, samples
from qprune.objective.curvature import Curvature
from qprune.objective.fisher import PerSampleFisher
from qprune.objective.samples import DenseNetwork, SampleSize, samples_of
from qprune.objective.trace.autograd import trace_of
from qprune.objective.trace.recorder import (
    Recorder,
    Samples,
    Trace,
    differentiating,
    forward,
    mean_loss,
    out_of_memory,
)
from qprune.steps.compensate import Compensate, Compensation, gauss_newton
from qprune.steps.distill import Distillation
from qprune.steps.start import Pruner, Start
from qprune.walk.request import Request
from solvers import Ask, LowRank, QuadraticProblem
from solvers.host.machine import peak_memory

_FEWER_PER_STEP = "smaller samples_per_step (--samples-per-step)"
_FEWER_SAMPLES = "fewer samples (--num-calibration-samples)"
_SMALLER_BLOCKS = "smaller blocks (--block-size)"
_FEWER_BLOCKS = "fewer blocks for one expansion (--num-blocks)"
_SMALLER_BATCH = "a smaller batch_size"
_FEWER_TARGETS = "fewer layers at a time (--targets, --ignore)"

# Pieces in which per-sample gradients are made (`qprune.objective.trace.functions`), and what is
# made beside them.
_PIECE_BYTES = 4 * (1 << 24)
_PIECES = 2.0
# Bytes per weight, counted in the code. State: values, mask and rests, of the dense network, of
# now, and of the step before. Expansion: gradient and squares, and what they are divided into.
# Select: keep values, moves, costs and their parts.
_STATE, _EXPANSION, _SELECT = 27, 16, 32
# Bytes per entry of a block's columns (single, double, scaled, cut up), and per pair of its
# variables that is being solved.
_COLUMN, _PAIR = 32, 24
# Seconds per weight of the vectors that a round of blocks makes.
_SELECT_SECONDS = 3e-8
# Times that a round of blocks judges, and that it solves.
_JUDGED, _SOLVED = 2.5, 1.3


@dataclass(frozen=True)
class Load:
    """A plan in numbers: all that its needs depend on.

    Attributes:
        weights: targeted ones.
        model_bytes: of parameters and buffers.
        given, accepted: samples to fit on as they were given, and to judge on.
        copies: augmented ones of each of the former.
        input_bytes, outputs, trace: of one sample: bytes, and numbers that come out, or are seen.
        per_step, batch: samples of one expansion, and of one pass.
        block_size, num_blocks: of one expansion.
        starts, rounds, moves: first passes, rounds of blocks, compensations.
        judged_moves: candidates of one compensation.
        moved: samples that one compensation passes over in all.
        moved_batch: and at once.
        vectors: bytes per weight while kept weights move.
        fits: whether a loss is fitted to the outputs first.
        piece: bytes per sample in which per-sample gradients are made; 0 where they are not.
        positions: tokens of a sample, or places of a convolution.
        workers: blocks solved at once.
        threads: batches passed at once, each through a copy of the model.
        expand, judge, move: passes.
        solve: seconds of one block; None = nobody knows.
        written: bytes of keys and values cached, and tokens a sequence, where the model writes
            its own text.
    """

    weights: int
    model_bytes: int
    given: int
    accepted: int
    copies: int
    input_bytes: int
    outputs: int
    trace: int
    per_step: int
    batch: int
    block_size: int
    num_blocks: int
    starts: int
    rounds: int
    moves: int
    judged_moves: int
    moved: float
    moved_batch: int
    vectors: int
    fits: bool
    piece: float
    positions: int
    workers: int
    expand: Pass
    judge: Pass
    move: Pass
    solve: float | None
    written: tuple[float, int] = (0.0, 0)
    threads: int = 1

    def at_once(self, samples: float, batch: int) -> int:
        """Batches of ``samples`` that are passed at the same time."""
        return max(1, min(self.threads, math.ceil(samples / max(1, batch))))

    @property
    def fit(self) -> int:
        """All samples to fit on."""
        return self.given * (1 + self.copies)

    @property
    def drawn(self) -> int:
        """Samples of one expansion."""
        return min(self.fit, self.per_step)

    @property
    def kept_answers(self) -> bool:
        """Whether the dense outputs are kept, rather than the dense network."""
        return self.fit * self.outputs <= samples.KEEP_OUTPUTS


def walk_needs(load: Load) -> tuple[list[Part], list[Phase]]:
    """(what is in memory all the time, the phases) of the walk."""
    return _always(load), [_preparing(load), _expanding(load), _solving(load), _moving(load)]


def _always(load: Load) -> list[Part]:
    answers = (
        Part("dense outputs", 4.0 * (load.fit + load.accepted) * load.outputs, _FEWER_SAMPLES)
        if load.kept_answers
        else Part("a copy of the dense network", load.model_bytes)
    )
    made = load.input_bytes * load.fit if load.copies else 0.0
    return [
        Part("state of all weights", _STATE * load.weights, _FEWER_TARGETS),
        Part("samples to fit on", made, _FEWER_SAMPLES),
        answers,
    ]


def _preparing(load: Load) -> Phase:
    """Making samples: each part and all of them together for a moment."""
    made = 2.0 * load.input_bytes * load.given * load.copies
    once = load.at_once(load.fit, load.batch)
    cached, tokens = load.written
    written = load.given * load.copies * (1 if tokens else 0)
    batch = max(1, min(load.batch, load.fit))
    return Phase(
        "samples",
        (
            Part("samples to fit on", made, _FEWER_SAMPLES),
            Part("keys and values of text being written", cached),
            Part("a batch's activations", once * load.judge.num_bytes(batch), _SMALLER_BATCH),
        ),
        (
            Part("writing text", 2 * load.judge.seconds(written, batch)),
            Part("dense outputs", load.judge.seconds(load.fit, batch) / once),
        ),
    )


def _expanding(load: Load) -> Phase:
    drawn, batch = load.drawn, min(load.batch, load.drawn)
    taken = 0.0 if drawn == load.fit else drawn * (load.input_bytes + 4.0 * load.outputs)
    # Logits in double precision, and what is made of them.
    fitted = 44.0 * drawn * load.outputs if load.fits else 0.0
    traced = 4.0 * min(drawn * load.trace, fisher.KEEP_FLOATS)
    again = load.rounds if drawn * load.trace > fisher.KEEP_FLOATS else 0
    expansions = load.starts + load.rounds + again
    judged = 2 * load.starts + _JUDGED * load.rounds
    once, tried = load.at_once(drawn, batch), load.at_once(load.accepted, load.batch)
    pieces = min(_PIECES * load.piece * batch, _PIECES * _PIECE_BYTES)
    return Phase(
        "expand",
        (
            Part("samples of one expansion", taken + fitted, _FEWER_PER_STEP),
            # The last batch's trace is among its activations.
            Part("traces of an expansion", max(0.0, traced - 4.0 * batch * load.trace)),
            Part("a batch's activations", once * load.expand.num_bytes(batch), _SMALLER_BATCH),
            Part("copies of the model for threads", load.model_bytes * (once if once > 1 else 0)),
            Part("per-sample gradients", once * pieces),
            Part("expansion of the loss", _EXPANSION * load.weights, _FEWER_TARGETS),
        ),
        (
            Part("expanding the loss", load.expand.seconds(expansions * drawn, batch) / once),
            Part("judging steps", load.judge.seconds(judged * load.accepted, load.batch) / tried),
        ),
    )


def _solving(load: Load) -> Phase:
    drawn, all_variables = load.drawn, load.num_blocks * load.block_size
    once = min(load.workers, load.num_blocks)
    solves = load.rounds * load.num_blocks * _SOLVED / max(1, once)
    traced = 4.0 * load.trace * drawn
    traced = traced if drawn * load.trace <= fisher.KEEP_FLOATS else 0.0
    gathered = 8.0 * drawn * load.positions * all_variables
    parts = (
        Part("traces of an expansion", traced, _FEWER_PER_STEP),
        Part("columns of the blocks", _COLUMN * drawn * all_variables, _FEWER_BLOCKS),
        Part("per-sample gradients", min(_PIECES * _PIECE_BYTES, gathered)),
        Part("matrices being solved", _PAIR * once * load.block_size**2, _SMALLER_BLOCKS),
        Part("costs of all weights", (_SELECT + _EXPANSION) * load.weights, _FEWER_TARGETS),
    )
    return Phase(
        "solve",
        parts,
        (
            Part("solving blocks", solves * (load.solve or 0.0)),
            Part("selecting blocks", _SELECT_SECONDS * load.weights * load.rounds),
        ),
    )


def _moving(load: Load) -> Phase:
    if not load.moves:
        return Phase("compensate")
    batch = max(1, min(load.moved_batch, load.batch, load.fit))
    judged = load.moves * (load.judged_moves + 1) * load.accepted
    return Phase(
        "compensate",
        (
            Part("a batch's activations", load.move.num_bytes(batch), _SMALLER_BATCH),
            Part("moves of all weights", load.vectors * load.weights, _FEWER_TARGETS),
        ),
        (
            Part("moving kept weights", load.move.seconds(load.moves * load.moved, batch)),
            Part(
                "judging steps",
                load.judge.seconds(judged, load.batch) / load.at_once(load.accepted, load.batch),
            ),
        ),
    )


logger = logging.getLogger(__name__)

# A gauge's passes hold about so many numbers, so that they take milliseconds.
_GAUGED_FLOATS = 1 << 22
_GAUGED_VARIABLES = 128
# Bytes per weight while kept weights move, counted in the code. Second order: the vectors of
# conjugate gradients, a candidate, and copies of the weights. Distillation: the optimiser's two
# moments, gradients, the beginning, a candidate.
_SECOND_ORDER, _DISTILL = 48, 40


@runtime_checkable
class Foreseen(Protocol):
    """A `qprune.steps.start.Pruner` that can say beforehand what it needs."""

    def needs(self, model: nn.Module, layers: Layers, inputs: AnyInputs, forwards: Pass) -> Phase:
        """Memory and time of its work, from what a forward pass was seen to hold and take."""
        ...


@dataclass(frozen=True, eq=False)
class Plan:
    """A request made concrete, as far as its needs go.

    Attributes:
        request: as given.
        effort: how much work, where the request left it open.
        model: dense.
        layers: the targeted weights.
        fit: samples to fit on, as they were given.
        num_accepted: samples to judge on.
        augment: makes more samples to fit on.
        sample: what one of them costs and holds.
        start, curvature: strategies.
        compensation: how kept weights move; None = mask only.
        border: to the sampler.
        block_size: variables per block.
        batch_size: samples per forward pass.
        threads: that pass batches at once.
    """

    request: Request
    effort: Effort
    model: nn.Module
    layers: Layers
    fit: Calibration
    num_accepted: int
    augment: Augmentation | None
    sample: SampleSize
    start: Start | Pruner
    curvature: Curvature
    compensation: Compensate | None
    border: Ask
    block_size: int
    batch_size: int
    threads: int = 1


def needs_of(plan: Plan, executor: Any = None) -> Estimate | None:
    """What the run of ``plan`` needs; None where the network cannot be tried out.

    Passes over a few samples are made and timed, and our own samplers asked a small question: it
    takes as long as a few steps of a small network, or some passes of a large one. No random
    number of the run is drawn, and nothing of it changes.
    """
    try:
        load = load_of(plan, executor)
        foreseen = _first_pass(plan, load)
    except (QpruneError, RuntimeError, MemoryError) as error:
        if not isinstance(error, QpruneError) and not out_of_memory(error):
            raise
        # The run meets the same trouble, and has more to say about it.
        logger.debug("what the run needs is not known: %s", error)
        return None
    always, phases = walk_needs(load)
    unknown = "" if load.solve is not None else f"what the sampler {plan.border.name} takes"
    return estimate(
        float(psutil.Process().memory_info().rss),
        peak_memory(),
        always,
        [*phases, *foreseen],
        limit=plan.request.max_seconds,
        unknown=unknown,
    )


def load_of(plan: Plan, executor: Any = None) -> Load:
    """The plan in numbers, passes measured.

    Raises:
        QpruneError: the network, the data or the loss are not fit for each other.
    """
    gauges = _Gauges.of(plan)
    effort, move = plan.effort, plan.compensation
    rounds = (effort.stages - 1) * effort.rounds + effort.final_rounds
    moves = effort.stages + rounds + move.final_steps if move else 0
    steps = effort.stages + rounds + moves
    share = min(1.0, (plan.request.max_steps or steps) / max(1, steps))
    copies = getattr(plan.augment, "copies", 0 if plan.augment is None else 8)
    drawn = min(effort.samples_per_step, len(plan.fit) * (1 + copies))
    moved, moved_batch, judged, vectors = _moved(move, drawn)
    loss = plan.request.loss
    return Load(
        weights=plan.layers.size,
        model_bytes=sum(t.nbytes for t in plan.model.state_dict().values()),
        given=len(plan.fit),
        accepted=plan.num_accepted,
        copies=copies,
        input_bytes=sum(tensor[:1].nbytes for tensor in tensors_of(plan.fit.inputs)),
        outputs=0 if loss.needs_labels else plan.sample.outputs,
        trace=gauges.trace,
        per_step=effort.samples_per_step,
        batch=plan.batch_size,
        block_size=plan.block_size,
        num_blocks=plan.request.num_blocks,
        starts=effort.stages,
        rounds=round(rounds * share),
        moves=round(moves * share),
        judged_moves=judged,
        moved=moved,
        moved_batch=moved_batch,
        vectors=vectors,
        fits=loss.fits(values_move=move is not None),
        piece=gauges.piece,
        positions=gauges.positions,
        workers=_workers(executor),
        expand=gauges.expand,
        judge=gauges.judge,
        move=gauges.move,
        solve=_solve_seconds(plan),
        written=_written(plan),
        threads=plan.threads,
    )


def _moved(move: Any, drawn: int) -> tuple[float, int, int, int]:
    """(samples passed over in one call, at once, candidates, bytes per weight)."""
    if isinstance(move, Distillation):
        return move.num_samples, move.samples_per_step, move.candidates, _DISTILL
    if isinstance(move, Compensation):
        marks = move.iterations or ()
        passed = drawn * (1 + max(marks, default=0) * (move.curvature_share or 1.0))
        return passed, drawn, len(marks) * len(move.lengths), _SECOND_ORDER
    return float(drawn), drawn, 4, _SECOND_ORDER


def _first_pass(plan: Plan, load: Load) -> list[Phase]:
    if not isinstance(plan.start, Foreseen):
        return []
    return [plan.start.needs(plan.model, plan.layers, plain(plan.fit.inputs), load.judge)]


@dataclass(frozen=True, eq=False)
class _Gauges:
    """Passes as they were measured.

    Attributes:
        expand, judge, move: see `Load`.
        trace: numbers that the layers see of one sample.
        piece, positions: see `Load`.
    """

    expand: Pass
    judge: Pass
    move: Pass
    trace: int
    piece: float
    positions: int

    @classmethod
    def of(cls, plan: Plan) -> _Gauges:
        model, layers, loss = plan.model, plan.layers, plan.request.loss
        most = min(len(plan.fit), plan.batch_size, plan.effort.samples_per_step)
        large = max(1, min(most, _GAUGED_FLOATS // max(1, plan.sample.floats)))
        large = min(most, max(2, large))
        sizes = (max(1, large // 2), large)
        # Random numbers of its own, and answers as the run's samples have them.
        generator = torch.Generator().manual_seed(0)
        network = DenseNetwork(model, plan.sample.outputs, large)
        some = samples_of(plan.fit.take(torch.arange(large)), loss, None, network, generator)
        traces: list[Trace] = []

        def first(size: int) -> Samples:
            return some.take(torch.arange(size))

        def expand(size: int) -> object:
            traces[:] = [_traced(plan, first(size), generator)]
            return None

        def judge(size: int) -> object:
            return mean_loss(model, first(size), loss, size)

        def backward(size: int) -> object:
            samples = first(size)
            with differentiating(model, layers) as weights:
                losses = loss.per_sample(forward(model, samples.inputs), samples.targets)
                return torch.autograd.grad(losses.sum(), weights, allow_unused=True)

        def product(size: int) -> object:
            vector = torch.zeros(layers.size, device=layers.device)
            return gauss_newton(model, layers, first(size), loss, size)(vector)

        expanded = gauged(expand, sizes)
        trace = traces.pop()
        calls = [call for uses in trace.calls for call in uses]
        positions = [call.positions for call in calls]
        # One token a sample: squares and columns are products of what there is.
        pieces = [
            4.0 * call.floats_per_sample
            for call, places in zip(calls, positions, strict=True)
            if places > 1
        ]
        move = {Compensation: product, Distillation: backward, type(None): None}.get(
            type(plan.compensation), backward
        )
        return cls(
            expanded,
            gauged(judge, sizes),
            Pass() if move is None else gauged(move, sizes),
            trace.num_floats // trace.num_samples,
            max(pieces, default=0.0),
            max(positions, default=1),
        )


def _traced(plan: Plan, samples: Samples, generator: torch.Generator) -> Trace:
    """One batch of an expansion, as `qprune.objective` makes it."""
    curvature, loss, layers = plan.curvature, plan.request.loss, plan.layers
    felt: Callable[[Tensor, Tensor], Tensor] = loss.per_sample
    if isinstance(curvature, PerSampleFisher):
        felt = curvature.losses(loss, generator)()
    with differentiating(plan.model, layers) as weights:
        with Recorder(layers) as recorder:
            outputs = forward(plan.model, samples.inputs)
        losses = loss.per_sample(outputs, samples.targets)
        if not losses.requires_grad:
            raise CalibrationError("the loss does not depend on any targeted weight")
        parts = torch.autograd.grad(losses.sum(), weights, retain_graph=True, allow_unused=True)
        felt_losses = felt(outputs, samples.targets)
        del parts
        return trace_of(plan.model, layers, samples.inputs, outputs, recorder, felt_losses)


def _solve_seconds(plan: Plan) -> float | None:
    """Seconds of one block by a sampler of ours; None for others, which may charge for a call."""
    border = plan.border
    if not plan.effort.rounds and not plan.effort.final_rounds:
        return 0.0
    if "time_limit" in border.options:
        return float(border.options["time_limit"])
    ours = type(border.sampler).__module__.partition(".")[0] == "solvers"
    if not ours or hasattr(border.sampler, "child") or border.paid:
        return None
    size = min(_GAUGED_VARIABLES, plan.block_size)
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((2 * size, size))
    present = (np.arange(size) < size // 2).astype(np.int8)
    problem = QuadraticProblem(
        -(factor @ present) @ factor, LowRank(factor), counts=int(present.sum())
    )
    answers = [border(problem, present, seed) for seed in range(2)]
    return answers[-1].seconds * (plan.block_size / size) ** 2


def _workers(executor: Any) -> int:
    return int(getattr(executor, "_max_workers", 1) or 1)


def _written(plan: Plan) -> tuple[float, int]:
    """Bytes of cached keys and values, and tokens a sequence, where the model writes its text."""
    augment = plan.augment
    if not isinstance(augment, OwnText):
        return 0.0, 0
    inputs = plan.fit.inputs
    assert isinstance(inputs, Tensor)  # Augmentations are for nothing else.
    with torch.no_grad(), Tally() as tally:
        output: Any = augment.model(inputs[:1, :2], use_cache=True)
    # All that lives on is the cache and the logits.
    each = (tally.live - output.logits.untyped_storage().nbytes()) / 2
    length = inputs.shape[1]
    return each * length * min(len(inputs), max(1, selftext.CACHED_TOKENS // length)), length

"""Cost of pruning across the network, counted from its numbers.

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
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from qprune.cost import Needs, Pass, Phase, Tally, gauged
from qprune.data import augment as selftext
from qprune.data.augment import OwnText
from qprune.data.inputs import tensors_of
from qprune.errors import CalibrationError
from qprune.moving.compensate import Compensate, MoveCost
from qprune.objective import fisher, samples
from qprune.objective.curvature import Curvature
from qprune.objective.fisher import PerSampleFisher
from qprune.objective.samples import DenseNetwork, Objective, Prepared, samples_of
from qprune.objective.trace.autograd import trace_of
from qprune.objective.trace.recorder import (
    Recorder,
    Trace,
    differentiating,
    forward,
)
from qprune.results import Part
from qprune.steps.propose import FACTOR_FLOATS
from qprune.walk.journal import Limits
from solvers import Ask, LowRank, QuadraticProblem

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
# now, and of the step before. Expansion: gradient and squares, each by the samples' halves, given
# and made. Select: keep values, moves, costs and their parts, by all samples and by each half.
_STATE, _EXPANSION, _SELECT = 27, 56, 64
# Bytes per entry of a block's columns (single, double, scaled, cut up), and per pair of its
# variables that is being solved.
_COLUMN, _PAIR = 32, 24
# Bytes per number in the factor of weights that move along: itself, and as each view takes it.
_ALONG = 24
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
        correct: seconds of the correction of one block's model.
        along: numbers in the factor of the weights that move along with blocks.
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
    correct: float = 0.0
    along: int = 0

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
        """True if the dense outputs are kept, rather than the dense network."""
        return self.fit * self.outputs <= samples.KEEP_OUTPUTS


def _phases(load: Load) -> list[Phase]:
    return [_preparing(load), _expanding(load), _solving(load), _moving(load)]


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
        Part("weights that move along", _ALONG * load.along, _FEWER_PER_STEP),
    )
    return Phase(
        "solve",
        parts,
        (
            Part("solving blocks", solves * (load.solve or 0.0)),
            Part("correcting models", load.correct * load.rounds * load.num_blocks),
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


class Steps(Protocol):
    """The numbers of a complete `qprune.walk.networkwise.Networkwise` that its cost depends on."""

    @property
    def curvature(self) -> Curvature: ...
    @property
    def stages(self) -> int: ...
    @property
    def rounds(self) -> int: ...
    @property
    def final_rounds(self) -> int: ...
    @property
    def samples_per_step(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def corrected(self) -> bool: ...
    @property
    def anticipates(self) -> bool: ...


def network_cost(
    method: Steps,
    prepared: Prepared,
    compensate: Compensate | None,
    ask: Ask,
    limits: Limits,
    executor: Any = None,
) -> Needs:
    """Memory and time of a run across the network.

    Passes over a few samples are made and timed, and our own samplers asked a small question: it
    takes as long as a few steps of a small network, or some passes of a large one. No random
    number of the run is drawn, and nothing of it changes.

    Raises:
        QpruneError: the network, the data or the loss are not fit for each other.
    """
    return needs_of(load_of(method, prepared, compensate, ask, limits, executor), ask.name)


def needs_of(load: Load, sampler: str) -> Needs:
    """Memory and time of a run with these numbers, which asks the sampler of that name."""
    unknown = "" if load.solve is not None else f"what the sampler {sampler} takes"
    return Needs(tuple(_always(load)), tuple(_phases(load)), unknown)


def load_of(
    method: Steps,
    prepared: Prepared,
    compensate: Compensate | None,
    ask: Ask,
    limits: Limits,
    executor: Any = None,
) -> Load:
    """The run in numbers, passes measured; the arguments are those of `network_cost`."""
    gauges = _Gauges.of(method, prepared, compensate)
    move, fit, loss, augment = compensate, prepared.fit, prepared.loss, prepared.augment
    rounds = (method.stages - 1) * method.rounds + method.final_rounds
    calls = _calls(move, method.stages, rounds) if move else []
    steps = max(1, method.stages + rounds + len(calls))
    share = min(1.0, (limits.max_steps or steps) / steps)
    copies = getattr(augment, "copies", 0 if augment is None else 8)
    drawn = min(method.samples_per_step, len(fit) * (1 + copies))
    costs = [call.cost(drawn) for call in calls] or [MoveCost(0.0, 0, 0, 0)]
    return Load(
        weights=prepared.weights.size,
        model_bytes=sum(t.nbytes for t in prepared.model.state_dict().values()),
        given=len(fit),
        accepted=len(prepared.held_out),
        copies=copies,
        input_bytes=sum(tensor[:1].nbytes for tensor in tensors_of(fit.inputs)),
        outputs=0 if loss.needs_labels else prepared.sample.outputs,
        trace=gauges.trace,
        per_step=method.samples_per_step,
        batch=prepared.batch_size,
        block_size=method.block_size,
        num_blocks=method.num_blocks,
        starts=method.stages,
        rounds=round(rounds * share),
        moves=round(len(calls) * share),
        judged_moves=round(sum(cost.candidates for cost in costs) / len(costs)),
        moved=sum(cost.samples for cost in costs) / len(costs),
        moved_batch=costs[-1].at_once,
        vectors=costs[-1].bytes_per_weight,
        fits=loss.fits(values_move=move is not None),
        piece=gauges.piece,
        positions=gauges.positions,
        workers=int(getattr(executor, "_max_workers", 1) or 1),
        expand=gauges.expand,
        judge=gauges.judge,
        move=gauges.move,
        solve=_solve_seconds(ask, method.block_size) if rounds else 0.0,
        written=_written(prepared),
        threads=getattr(prepared.ranks, "number", 1),
        correct=_correct_seconds(method) if rounds else 0.0,
        along=_along(method, move, drawn * prepared.weights.size),
    )


def _calls(move: Compensate, stages: int, rounds: int) -> list[Compensate]:
    """The compensation in every call of a run."""
    after = [move] * move.final_steps
    if move.at_end:
        return after
    return [*(move.at(stage, stages) for stage in range(stages)), *[move] * rounds, *after]


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
    def of(cls, method: Steps, prepared: Prepared, compensate: Compensate | None) -> _Gauges:
        model, layers, loss = prepared.model, prepared.weights, prepared.loss
        most = min(len(prepared.fit), prepared.batch_size, method.samples_per_step)
        large = max(1, min(most, _GAUGED_FLOATS // max(1, prepared.sample.floats)))
        large = min(most, max(2, large))
        sizes = (max(1, large // 2), large)
        # Random numbers of its own, and answers as the run's samples have them.
        generator = torch.Generator().manual_seed(0)
        network = DenseNetwork(model, prepared.sample.outputs, large)
        some = samples_of(prepared.fit.take(torch.arange(large)), loss, None, network, generator)
        traces: list[Trace] = []

        def objective(size: int) -> Objective:
            return Objective(model, layers, some.take(torch.arange(size)), loss, size)

        def expand(size: int) -> object:
            traces[:] = [_traced(method.curvature, objective(size), generator)]
            return None

        def judge(size: int) -> object:
            return objective(size).value()

        expanded = gauged(expand, sizes)
        trace = traces.pop()
        calls = [call for uses in trace.calls for call in uses]
        return cls(
            expanded,
            gauged(judge, sizes),
            gauged(lambda size: compensate.probe(objective(size)), sizes) if compensate else Pass(),
            trace.num_floats // trace.num_samples,
            # One token a sample: squares and columns are products of what there is.
            max((4.0 * call.floats_per_sample for call in calls if call.positions > 1), default=0),
            max((call.positions for call in calls), default=1),
        )


def _traced(curvature: Curvature, objective: Objective, generator: torch.Generator) -> Trace:
    """One batch of an expansion, as `qprune.objective` makes it."""
    loss, layers, samples = objective.loss, objective.weights, objective.samples
    felt: Callable[[Tensor, Tensor], Tensor] = loss.per_sample
    if isinstance(curvature, PerSampleFisher):
        felt = curvature.losses(loss, generator)()
    with differentiating(objective.model, layers) as weights:
        with Recorder(layers) as recorder:
            outputs = forward(objective.model, samples.inputs)
        losses = loss.per_sample(outputs, samples.targets)
        if not losses.requires_grad:
            raise CalibrationError("the loss does not depend on any targeted weight")
        parts = torch.autograd.grad(losses.sum(), weights, retain_graph=True, allow_unused=True)
        felt_losses = felt(outputs, samples.targets)
        del parts
        return trace_of(objective.model, layers, samples.inputs, outputs, recorder, felt_losses)


def _solve_seconds(ask: Ask, block_size: int) -> float | None:
    """Seconds of one block by a sampler of ours; None for others, which may charge for a call."""
    if "time_limit" in ask.options:
        return float(ask.options["time_limit"])
    ours = type(ask.sampler).__module__.partition(".")[0] == "solvers"
    if not ours or hasattr(ask.sampler, "child") or ask.paid:
        return None
    size = min(_GAUGED_VARIABLES, block_size)
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((2 * size, size))
    present = (np.arange(size) < size // 2).astype(np.int8)
    problem = QuadraticProblem(
        -(factor @ present) @ factor, LowRank(factor), counts=int(present.sum())
    )
    answers = [ask(problem, present, seed) for seed in range(2)]
    return answers[-1].seconds * (block_size / size) ** 2


def _along(method: Steps, move: Compensate | None, most: int) -> int:
    """Numbers in the factor of the weights that move along with blocks, ``most`` if all do."""
    return min(FACTOR_FLOATS, most) if move and method.anticipates else 0


def _correct_seconds(method: Steps) -> float:
    """Seconds in which two halves of the samples solve a block."""
    if not method.corrected or not isinstance(method.curvature, PerSampleFisher):
        return 0.0
    return 2 * (_solve_seconds(Ask.to("relax", {"num_sweeps": 0}), method.block_size) or 0.0)


def _written(prepared: Prepared) -> tuple[float, int]:
    """Bytes of cached keys and values, and tokens a sequence, where the model writes its text."""
    augment = prepared.augment
    if not isinstance(augment, OwnText):
        return 0.0, 0
    inputs = prepared.fit.inputs
    assert isinstance(inputs, Tensor)  # Augmentations are for nothing else.
    with torch.no_grad(), Tally() as tally:
        output: Any = augment.model(inputs[:1, :2], use_cache=True)
    # All that lives on is the cache and the logits.
    each = (tally.live - output.logits.untyped_storage().nbytes()) / 2
    length = inputs.shape[1]
    return each * length * min(len(inputs), max(1, selftext.CACHED_TOKENS // length)), length

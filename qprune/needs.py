"""What a walk will need, counted from its numbers.

Memory: the vectors over all weights, the samples, the traces of an expansion, a batch's
activations, the blocks' factors. Time: passes times what one was seen to take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qprune import samples
from qprune.curvature import fisher
from qprune.estimate import Part, Phase
from qprune.gauge import Pass

_FEWER_PER_STEP = "smaller samples_per_step (--samples-per-step)"
_FEWER_SAMPLES = "fewer samples (--num-calibration-samples)"
_SMALLER_BLOCKS = "smaller blocks (--block-size)"
_FEWER_BLOCKS = "fewer blocks for one expansion (--num-blocks)"
_SMALLER_BATCH = "a smaller batch_size"
_FEWER_TARGETS = "fewer layers at a time (--targets, --ignore)"

# Pieces in which per-sample gradients are made (`qprune.calls`), and what is made beside them.
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

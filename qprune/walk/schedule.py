"""The order of a run's steps, one position after the other, so that it can stop between any two.

A run's next step is a function of its `Progress` and of the generator alone: whoever has both,
and the same setting, goes on to the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from qprune.errors import NonFiniteError
from qprune.objective.trace.recorder import halved
from qprune.results import Fault
from qprune.walk.rounds import block_round, compensate_once, first_pass, note_rollback
from qprune.walk.setting import Setting, State

logger = logging.getLogger(__name__)


class Phase(StrEnum):
    """What is done at a position."""

    START = "start"
    COMPENSATE = "compensate"
    BLOCKS = "blocks"
    SETTLE = "settle"


@dataclass(frozen=True)
class Position:
    """The next thing to do.

    Attributes:
        phase: prune to the stage's sparsity, move the kept weights, a round of blocks, or the
            compensations after the last block.
        stage: rung of the sparsity ladder, from 0.
        number: of the round in its stage, or of the last compensations, from 0.
    """

    phase: Phase
    stage: int = 0
    number: int = 0


@dataclass(frozen=True, eq=False)
class Progress:
    """Where a run is between two steps.

    Attributes:
        position: the next step; None at the end.
        state: weights, mask, trust.
        before: the state before the last step that changed it, to go back to.
        batch_size: samples per forward pass; halved where memory did not suffice.
    """

    position: Position | None
    state: State
    before: State
    batch_size: int

    @classmethod
    def beginning(cls, setting: Setting) -> Progress:
        """The dense network, before the first stage."""
        return cls(Position(Phase.START), setting.dense, setting.dense, setting.batch_size)


def walk(setting: Setting, progress: Progress, keep: Callable[[Progress], None]) -> State:
    """From ``progress`` to the asked sparsity; ``keep`` hears of every position on the way."""
    while progress.position is not None:
        keep(progress)
        progress = advance(setting, progress)
    keep(progress)
    return progress.state


def advance(setting: Setting, progress: Progress) -> Progress:
    """One step further.

    A step that runs out of memory is done again with half the batch. One that meets NaN or Inf
    undoes the step before it, as long as that keeps the sparsity.

    Raises:
        NonFiniteError: there is nothing to go back to.
    """
    generator = setting.generator.get_state()
    while True:
        try:
            return _step(replace(setting, batch_size=progress.batch_size), progress)
        except NonFiniteError as error:
            return _rolled_back(setting, progress, error)
        except (RuntimeError, MemoryError) as error:
            batch_size, fault = halved(progress.batch_size, error)
            progress = replace(progress, batch_size=batch_size)
            setting.journal.fault(fault)
        setting.generator.set_state(generator)
        setting.layers.write(progress.state.values)


def _step(setting: Setting, progress: Progress) -> Progress:
    assert progress.position is not None
    state = progress.state
    moved, following = _STEPS[progress.position.phase](setting, state, progress.position)
    before = progress.before if moved.values is state.values else state
    return Progress(following, moved, before, progress.batch_size)


def _start(setting: Setting, state: State, at: Position) -> tuple[State, Position | None]:
    if setting.journal.exhausted:
        return first_pass(setting, state, setting.effort.stages - 1), None
    return first_pass(setting, state, at.stage), Position(Phase.COMPENSATE, at.stage)


def _compensate(setting: Setting, state: State, at: Position) -> tuple[State, Position | None]:
    following = replace(at, phase=Phase.BLOCKS)
    if setting.compensation is None or setting.compensation.at_end:
        return state, following
    return compensate_once(setting, state, at.stage), following


def _blocks(setting: Setting, state: State, at: Position) -> tuple[State, Position | None]:
    effort = setting.effort
    last = at.stage == effort.stages - 1
    if setting.journal.exhausted or at.number >= (effort.final_rounds if last else effort.rounds):
        return state, Position(Phase.SETTLE) if last else Position(Phase.START, at.stage + 1)
    state, changed = block_round(setting, state, at.stage, at.number)
    phase = Phase.COMPENSATE if changed else Phase.BLOCKS
    return state, Position(phase, at.stage, at.number + 1)


def _settle(setting: Setting, state: State, at: Position) -> tuple[State, Position | None]:
    if setting.journal.exhausted or at.number >= setting.final_compensations:
        return state, None
    moved = compensate_once(setting, state, setting.effort.stages - 1)
    return moved, None if moved is state else replace(at, number=at.number + 1)


_STEPS = {
    Phase.START: _start,
    Phase.COMPENSATE: _compensate,
    Phase.BLOCKS: _blocks,
    Phase.SETTLE: _settle,
}


def _rolled_back(setting: Setting, progress: Progress, error: NonFiniteError) -> Progress:
    """The state before the last change, at the position after the failed one."""
    at, before = progress.position, progress.before
    assert at is not None
    same_count = int(before.mask.sum()) == int(progress.state.mask.sum())
    if before.values is progress.state.values or at.phase is Phase.START or not same_count:
        raise error
    logger.warning("%s: going back by one step", error)
    setting.layers.write(before.values)
    # The move that led here promised well and was believed: believe less.
    state = replace(before, trust=progress.state.trust.raised(0.0, 1))
    setting.journal.fault(Fault("not finite", str(error), "the last change was undone"))
    note_rollback(setting, state, at.stage, at.number)
    following = {
        Phase.COMPENSATE: replace(at, phase=Phase.BLOCKS),
        Phase.BLOCKS: replace(at, number=at.number + 1),
        Phase.SETTLE: None,
    }[at.phase]
    return Progress(following, state, state, progress.batch_size)

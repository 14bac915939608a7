"""Blocks put to a sampler: several problems to any executor, and what observers see of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from qprune.errors import SamplerError
from solvers import Answer, Ask, QuadraticProblem
from solvers.errors import SamplerFailedError

Question = tuple[QuadraticProblem, NDArray[np.int8], int]
"""What a sampler is asked: the problem, the present decision, a seed."""


@dataclass(frozen=True, eq=False)
class SolvedBlock:
    """Problem of a block with the sampler's answer.

    Attributes:
        step: index of the next step; it is of this block, unless the answer changes nothing.
        stage, round: as in `qprune.results.Step`.
        block: number of the block in its step, from 0.
        sampler: name of the sampler in reports.
        layers: layer name -> number of variables in it.
        sparsity: sparsity of the network before the block.
        problem: the problem; labels are flat indices of weights, energies nats.
        present: shape (n,), int8, the decision before; its energy is 0 unless the caller
            adds terms.
        seed: seed given to the sampler.
        answer: the decision that is tested on the acceptance split.
        predicted: predicted change of the loss, nats: the answer's energy without prices
            and the caller's terms.
    """

    step: int
    stage: int
    round: int
    block: int
    sampler: str
    layers: Mapping[str, int]
    sparsity: float
    problem: QuadraticProblem
    present: NDArray[np.int8]
    seed: int
    answer: Answer
    predicted: float


BlockObserver = Callable[[SolvedBlock], None]
"""Callback for every problem that a sampler has answered, before the answer is used."""


def answers(ask: Ask, questions: Sequence[Question], executor: Any = None) -> list[Answer]:
    """Return the answers in the order of the questions.

    Args:
        ask: the sampler.
        questions: each with its seed, so that its answer depends on nothing else.
        executor: something with ``map``, as in `concurrent.futures`; None = one after another.

    Raises:
        SamplerError: see `answer`.
    """
    each = cast("Callable[..., Iterable[Answer]]", map if executor is None else executor.map)
    # No more than the problem goes out and no more than the answer comes back: executors may
    # be on other machines.
    return list(each(partial(answer, ask), questions))


def answer(ask: Ask, question: Question) -> Answer:
    """Return the answer to one question, never worse than its present decision.

    Raises:
        SamplerError: the sampler raised, or returned nothing, NaN, or wrong variables.
    """
    try:
        return ask(*question)
    except SamplerFailedError as error:
        raise SamplerError(str(error), problem=error.problem, answer=error.answer) from error

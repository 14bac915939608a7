"""Annealing of many problems and many reads in one batch, on a CPU or a GPU, counts kept exact.

All replicas (a read of a problem) make one move a step. With counts a replica takes one of its
ones, uniformly, and lets it change places with a zero of its group by the heat-bath rule: partner
j with probability proportional to exp(-Delta_j / T), staying put included. The row of the matrix
that this reads serves all possible partners at once, and the choice is one minimum over noisy
costs (Gumbel's trick), so a step is a few passes over (replicas, n) numbers. Without counts all
flips are tested at once by Metropolis' rule and one of those that pass is made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field

from solvers.errors import InvalidOptionError, InvalidProblemError
from solvers.host.clock import Deadline, running
from solvers.host.machine import require_memory
from solvers.options import Count, read_options
from solvers.problem.problem import QuadraticProblem
from solvers.problem.solution import Solution
from solvers.sampler import States, random_states
from solvers.search.batched.batch import (
    Batch,
    Device,
    Moves,
    TooLateError,
    batches,
    checked_device,
    for_descent,
    generator,
    matrices_of,
    require_room,
)
from solvers.search.batched.moves import moves_for
from solvers.search.runs import Answers
from solvers.search.temperatures import ScheduleOptions
from solvers.search.timed import TimedSampler, descend

# Limit of one batch: bits of its states. A GPU needs many at
# once to be busy.
_MOST_ENTRIES = {"cpu": 1 << 16}
_MOST_ENTRIES_ELSEWHERE = 1 << 22
# States of a batch that are evaluated after the time limit.
_MOST_AFTERWARDS = 1


class TorchAnnealingOptions(ScheduleOptions):
    """Options of `TorchAnnealing`."""

    num_reads: Count | None = Field(
        default=None,
        description="independent reads of each problem (default 8; with a time limit, as many "
        "as fit)",
    )
    num_sweeps: Count = Field(
        default=100,
        description="temperatures; a sweep moves as often as there are ones (default 100; growing "
        "with a time limit)",
    )
    device: Device = Field(default="cpu", description='torch device, "cpu" (default) or "cuda"')


class TorchAnnealing(TimedSampler):
    """Heat-bath swap annealing of many problems x many reads in one batch.

    A GPU and a CPU draw different numbers from a seed.

    Example:
        >>> problem = QuadraticProblem([3.0, -1.0, -2.0], np.zeros((3, 3)), counts=2)
        >>> TorchAnnealing().sample_problem(problem, seed=1).sample.tolist()
        [0, 1, 1]
    """

    Options = TorchAnnealingOptions

    def _search(
        self,
        problem: QuadraticProblem,
        asked: TorchAnnealingOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        (solution,) = _solve([problem], () if given is None else given, asked, deadline)
        return solution

    def sample_problems(
        self, problems: Sequence[QuadraticProblem], **options: object
    ) -> list[Solution]:
        """Solve problems of equal size in one batch, all with counts or all without.

        Args:
            problems: any number; memory is 4 n^2 bytes each, and some 20 n a read.
            options: as in `options`, except ``initial_states``.

        Returns:
            A solution for each, in order; samples of each best first.

        Raises:
            InvalidProblemError: sizes differ, or some have counts and some have none.
        """
        asked = read_options(type(self).__name__, TorchAnnealingOptions, options)
        if asked.initial_states is not None:
            raise InvalidOptionError("initial_states are of one problem; call sample_problem")
        began = time.perf_counter_ns()
        with running(asked.time_limit) as deadline:
            solutions = _solve(list(problems), (), asked, deadline)
        more: dict[str, Any] = {"interrupted": True} if deadline.interrupted else {}
        more["timing"] = {
            "preprocessing_ns": 0,
            "sampling_ns": time.perf_counter_ns() - began,
            "postprocessing_ns": 0,
        }
        return [
            Solution(one.samples, one.energies, one.lower_bound, {**one.info, **more})
            for one in solutions
        ]


def _solve(
    problems: list[QuadraticProblem],
    given: Sequence[States] | States,
    asked: TorchAnnealingOptions,
    deadline: Deadline,
) -> list[Solution]:
    """A solution for each problem; ``given`` are states of the first one."""
    on = checked_device(asked.device)
    _check_alike(problems)
    if not problems:
        return []
    num_reads, most = asked.reads(8), _reads_together(problems, asked, on)
    answers = [Answers(problem, num_reads) for problem in problems]
    seeds = np.random.SeedSequence(asked.seed).spawn(len(problems))
    starts = [np.random.default_rng(own) for own in seeds]
    random, sweeps, made, done = generator(asked.seed, on), 0, 0, 0
    try:
        matrices, scales = matrices_of(problems, on, deadline)
        for index, reads in enumerate(batches(num_reads, most)):
            if done and deadline.passed:
                break
            start = np.stack(
                [random_states(p, reads, rng) for p, rng in zip(problems, starts, strict=True)]
            )
            for read, state in enumerate(given[done : done + reads]):
                start[0, read] = state
            batch = Batch(problems, matrices, scales, start, random)
            moves = moves_for(batch, problems)
            sweeps += _anneal(moves, batch, problems, asked, index, deadline)
            made += moves.made()
            for problem, found, states in zip(problems, answers, batch.states(), strict=True):
                _keep(problem, found, states, deadline)
            done += reads
    except TooLateError:
        for problem, found, rng in zip(problems, answers, starts, strict=True):
            _keep(problem, found, random_states(problem, 1, rng), deadline)
    for state in given:
        answers[0].add(answers[0].begun, state)
    info = {"sweeps": sweeps, "moves": made}
    return [found.solution(info) for found in answers]


def _reads_together(
    problems: list[QuadraticProblem], asked: TorchAnnealingOptions, device: torch.device
) -> int:
    """Reads of one batch.

    Raises:
        ProblemTooLargeError: the batch, or its schedule, does not fit into memory.
    """
    size, num_reads = problems[0].num_variables, asked.reads(8)
    entries = _MOST_ENTRIES.get(device.type, _MOST_ENTRIES_ELSEWHERE)
    most = max(1, entries // max(1, size * len(problems)))
    most = min(most, 8 if num_reads is None else num_reads)
    require_room(
        len(problems) * (4.0 * size * size + 40.0 * most * size),
        f"a batch of {len(problems)} problems of {size} variables x {most} reads",
        "pass fewer problems at a time",
        device,
    )
    require_memory(
        32.0 * asked.num_sweeps * len(problems),
        f"a schedule of {asked.num_sweeps} sweeps",
        "ask for fewer",
    )
    return most


def _keep(problem: QuadraticProblem, answers: Answers, states: States, deadline: Deadline) -> None:
    """Keep the reads, the best of them descended in float64."""
    if deadline.passed:
        states = states[:_MOST_AFTERWARDS]
    best = int(problem.energies(states).argmin()) if len(states) > 1 else 0
    states[best] = descend(problem, states[[best]], deadline=for_descent(deadline))[0]
    for state in states:
        answers.add(answers.begun, state)


def _check_alike(problems: list[QuadraticProblem]) -> None:
    for index, problem in enumerate(problems):
        if problem.num_variables != problems[0].num_variables:
            raise InvalidProblemError(
                f"problem {index} has {problem.num_variables} variables, problem 0 has "
                f"{problems[0].num_variables}; a batch needs equal sizes"
            )
        if (problem.counts is None) is not (problems[0].counts is None):
            raise InvalidProblemError(
                f"problem {index} and problem 0 differ in having counts; batch them apart"
            )


def _anneal(
    moves: Moves,
    batch: Batch,
    problems: list[QuadraticProblem],
    asked: TorchAnnealingOptions,
    index: int,
    deadline: Deadline,
) -> int:
    """Sweep downhill, at every temperature, and downhill again; returns the sweeps in between."""
    moves.sweep(None, deadline)  # to a state near a local minimum, whose barriers set temperatures
    if deadline.passed:
        return 0
    near = batch.states()[:, 0]
    temperatures = np.array(
        [asked.temperatures(problem, x, index) for problem, x in zip(problems, near, strict=True)]
    )
    scaled = torch.from_numpy(temperatures / batch.scales[:, None]).float().to(batch.device)
    done = 0
    for at in scaled.T:
        if deadline.passed:
            return done
        moves.sweep(at, deadline)
        done += 1
    moves.sweep(None, deadline)
    return done

"""Annealing of many problems and many reads in one batch, on a CPU or a GPU, counts kept exact.

All replicas (a read of a problem) make one move a step. With counts a replica takes one of its
ones, uniformly, and lets it change places with a zero of its group by the heat-bath rule: partner
j with probability proportional to exp(-Delta_j / T), staying put included. The row of the matrix
that this reads serves all possible partners at once, and the choice is one minimum over noisy
costs (Gumbel's trick), so a step is a few passes over (replicas, n) numbers. Without counts all
flips are tested at once by Metropolis' rule and one of those that pass is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from solvers.clock import Deadline
from solvers.descent import descend
from solvers.errors import InvalidProblemError
from solvers.problem import QuadraticProblem
from solvers.sampler import CountingSampler, States, checked_states, positive_int, random_states
from solvers.solution import Solution
from solvers.temperatures import temperatures_for
from solvers.torch_batch import checked_device, generator, matrix_on, require_room, scale_of
from solvers.torch_moves import Batch, Moves, moves_for


class TorchAnnealing(CountingSampler):
    """Heat-bath swap annealing of many problems x many reads in one batch."""

    options: ClassVar = {
        "num_reads": "independent reads of each problem (default 8)",
        "num_sweeps": "temperatures; a sweep moves as often as there are ones (default 100)",
        "beta_range": "first and last inverse temperature (default: from the problem)",
        "schedule": "geometric (default) or linear in temperature",
        "seed": "seed of starts and moves; a GPU and a CPU draw different numbers from it",
        "initial_states": "states that reads start from, shape (k, n)",
        "time_limit": "seconds of wall time (default: none)",
        "device": 'torch device, "cpu" (default) or "cuda"',
    }

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        initial_states: ArrayLike | None = None,
        **options: Any,
    ) -> Solution:
        given = checked_states(problem, initial_states)
        (solution,) = self._solve([problem], given, **options)
        return solution

    def sample_problems(
        self, problems: Sequence[QuadraticProblem], **options: Any
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
        return self._solve(list(problems), None, **options)

    def _solve(
        self,
        problems: list[QuadraticProblem],
        given: States | None,
        *,
        num_reads: int = 8,
        num_sweeps: int = 100,
        beta_range: Sequence[float] | None = None,
        schedule: str = "geometric",
        seed: int | None = None,
        time_limit: float | None = None,
        device: str = "cpu",
    ) -> list[Solution]:
        num_reads = positive_int("num_reads", num_reads)
        num_sweeps = positive_int("num_sweeps", num_sweeps)
        limit = Deadline(time_limit)
        on = checked_device(device)
        _check_alike(problems)
        if not problems:
            return []
        size = problems[0].num_variables
        require_room(
            len(problems) * (4.0 * size * size + 40.0 * num_reads * size),
            f"a batch of {len(problems)} problems of {size} variables x {num_reads} reads",
            "pass fewer problems at a time, or fewer reads",
            on,
        )
        start = _starts(problems, num_reads, seed, given)
        batch = batch_of(problems, start, generator(seed, on), on)
        moves = moves_for(batch, problems)
        moves.sweep(None)  # to a state near a local minimum, whose barriers set temperatures
        near = batch.states()[:, 0]
        schedules = [
            temperatures_for(problem, x, num_sweeps, beta_range, schedule)
            for problem, x in zip(problems, near, strict=True)
        ]
        sweeps = _anneal(moves, np.array(schedules), batch, limit)
        info = {"sweeps": sweeps, "moves": moves.made()}
        return [
            _answer(problem, states, given, info)
            for problem, states in zip(problems, batch.states(), strict=True)
        ]


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


def _starts(
    problems: list[QuadraticProblem], num_reads: int, seed: int | None, given: States | None
) -> States:
    """Where reads begin, shape (problems, reads, n)."""
    seeds = np.random.SeedSequence(seed).spawn(len(problems))
    states = np.stack(
        [
            random_states(problem, num_reads, np.random.default_rng(own))
            for problem, own in zip(problems, seeds, strict=True)
        ]
    )
    if given is not None:
        states[0, : len(given)] = given[:num_reads]
    return states


def batch_of(
    problems: list[QuadraticProblem],
    states: States,
    random: torch.Generator,
    device: torch.device,
) -> Batch:
    """Problems of equal size and their states, shape (problems, reads, n), on ``device``."""
    scales = np.array([scale_of(problem) for problem in problems])
    size = problems[0].num_variables
    matrices = torch.empty((len(problems), size, size), device=device)
    for matrix, problem, scale in zip(matrices, problems, scales.tolist(), strict=True):
        matrix.copy_(matrix_on(problem, scale, device))
    linear = np.stack([problem.linear for problem in problems]) / scales[:, None]
    return Batch(
        matrices,
        torch.from_numpy(linear).float().to(device),
        torch.from_numpy(states).to(device),
        scales,
        random,
    )


def _anneal(moves: Moves, temperatures: NDArray[np.float64], batch: Batch, limit: Deadline) -> int:
    """Sweep at every temperature, shape (problems, sweeps), then once more at zero."""
    scaled = torch.from_numpy(temperatures / batch.scales[:, None]).float().to(batch.device)
    done = 0
    try:
        for at in scaled.T:
            if limit.passed:
                return done
            moves.sweep(at)
            done += 1
        moves.sweep(None)
    except KeyboardInterrupt:
        pass  # the states are those of the last whole sweep
    return done


def _answer(
    problem: QuadraticProblem, states: States, given: States | None, info: dict[str, Any]
) -> Solution:
    """The reads, the best of them descended in float64; the given states too."""
    if given is not None:
        states = np.concatenate([states, given])
    best = int(problem.energies(states).argmin())
    states[best] = descend(problem, states[best : best + 1])[0]
    return Solution.of(problem, states, info=info)

"""Simulated annealing by swaps inside groups, or by single flips where there is no count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import Field

from solvers.host.clock import Deadline
from solvers.options import Whole
from solvers.problem.parts import reduced
from solvers.problem.problem import Floats, QuadraticProblem
from solvers.problem.solution import Solution
from solvers.sampler import States
from solvers.search.forms import Form, cheapest, forms_for
from solvers.search.kernels.layout import Layout, search_dtype
from solvers.search.runs import Limits, Read, ReadOptions, improve_with_restarts, search, starts
from solvers.search.temperatures import ScheduleOptions
from solvers.search.timed import TimedSampler

# One step of a walk: about ten milliseconds. Fixed numbers, not a measured time, so that the steps,
# and with them the rounding, do not depend on the machine.
_PROPOSALS_PER_STEP = 1_000_000
_NANOSECONDS_PER_STEP = 1e7
# Fields are recomputed after this many moves per variable, so that rounding does not add up.
_MOVES_PER_REFRESH = 32
_QUENCH_SWEEPS = 5
_POOL_SIZE = 16
_REHEAT = 0.9


class AnnealingOptions(ScheduleOptions, ReadOptions):
    """Options of `SwapAnnealing`."""

    num_restarts: Whole = Field(
        default=0,
        description="further anneals in a read: crossings of its best states (default 0)",
    )


class SwapAnnealing(TimedSampler):
    """Simulated annealing that keeps every count exact.

    Hot sweeps propose random swaps; once few are taken, a sweep looks at whole rows and draws the
    partner from the Boltzmann distribution over all of them. Low-rank problems are walked on
    their factor while that is cheaper. Without counts: single flips, and sparse problems are
    reduced first.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.ones((3, 3)), counts=2)
        >>> SwapAnnealing().sample_problem(problem, seed=0).sample.tolist()
        [0, 1, 1]
    """

    Options = AnnealingOptions

    def _search(
        self,
        problem: QuadraticProblem,
        asked: AnnealingOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        reduction = reduced(problem, deadline)
        given = reduction.restrict(given)
        problem = reduction.problem
        limits = Limits.of(asked, deadline)
        layout = Layout.of(problem, search_dtype(problem))
        forms = forms_for(layout, deadline)
        state, random = next(starts(problem, asked.seed, given, 1))
        quenched = _quenched(forms[-1], layout.sorted(state), random, deadline)
        near = layout.unsorted(quenched)

        def walk(read: Read, index: int) -> Iterator[None]:
            schedule = asked.temperatures(problem, near, index)

            def improve(read: Read, crossing: bool) -> Iterator[None]:
                hottest = _crossing_start(schedule) if crossing else np.inf
                return anneal_steps(forms, read, np.minimum(schedule, hottest))

            return improve_with_restarts(
                layout, read, improve, asked.num_restarts, _POOL_SIZE, limits.target
            )

        first = asked.temperatures(problem, near, 0)
        solution = search(
            layout,
            starts(problem, asked.seed, given, limits.num_reads),
            walk,
            limits,
            {"beta_range": [float(1 / first[0]), float(1 / first[-1])]},
        )
        return reduction.lifted(solution)


def anneal_steps(forms: Sequence[Form], read: Read, temperatures: Floats) -> Iterator[None]:
    """Walk through the temperatures, always in the form that is cheapest at the last acceptance."""
    n = max(1, read.x.size)
    form = cheapest(forms, 1.0)
    kept, fresh_at = form.kept(read.x), read.tally[2]
    done, acceptance = 0, 1.0
    while done < temperatures.size:
        sweeps = max(1, _PROPOSALS_PER_STEP // max(1, form.proposals))
        # The acceptance is unknown at first and falls steeply: a short first part.
        sweeps = min(sweeps, max(1, temperatures.size // 50))
        sweeps = min(sweeps, max(1, int(_NANOSECONDS_PER_STEP / form.sweep(acceptance))))
        acceptance = form.anneal(read, kept, temperatures[done : done + sweeps])
        done += sweeps
        yield
        chosen = cheapest(forms, acceptance)
        if chosen is not form or read.tally[2] - fresh_at > _MOVES_PER_REFRESH * n:
            form, kept, fresh_at = chosen, chosen.kept(read.x), read.tally[2]


def _crossing_start(temperatures: Floats) -> float:
    """The temperature from which a crossing is annealed: it mixes the state without erasing it."""
    return float(temperatures[0] ** _REHEAT * temperatures[-1] ** (1 - _REHEAT))


def _quenched(form: Form, x: np.ndarray, random: np.ndarray, deadline: Deadline) -> np.ndarray:
    """A state near a local minimum, by sweeps at temperature 0."""
    read = Read.start(x, random.copy())
    kept = form.kept(x)
    for _ in range(_QUENCH_SWEEPS):
        if deadline.passed:
            break
        form.anneal(read, kept, np.zeros(1))
    return read.best

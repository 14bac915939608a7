"""Simulated annealing by swaps inside groups, or by single flips where there is no count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from solvers.elite import improve_with_restarts
from solvers.forms import Form, cheapest, forms_for
from solvers.layout import Layout, search_dtype
from solvers.problem import Floats, QuadraticProblem
from solvers.reads import Limits, Read, search, start_states, whole_number
from solvers.reduction import reduced
from solvers.sampler import CountingSampler, checked_states, positive_int
from solvers.solution import Solution
from solvers.temperatures import temperatures_for

# One step of a walk: about ten milliseconds of proposals. A fixed number, not a measured time, so
# that the steps, and with them the rounding, do not depend on the machine.
_PROPOSALS_PER_STEP = 1_000_000
# Kept fields are computed afresh after this many moves per variable, to shed rounding.
_MOVES_PER_REFRESH = 32
_QUENCH_SWEEPS = 5
_POOL_SIZE = 16
_REHEAT = 0.9


class SwapAnnealing(CountingSampler):
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

    options: ClassVar = {
        "num_reads": "independent reads (default 1)",
        "num_sweeps": "temperatures, one sweep each (default 1000)",
        "num_restarts": "further anneals in a read: crossings of its best states (default 0)",
        "beta_range": "first and last inverse temperature (default: from the problem)",
        "schedule": "temperatures in between: geometric (default) or linear",
        "seed": "seed of starts and moves",
        "initial_states": "states to start from, shape (k, n); further reads start at random",
        "num_threads": "threads that share the reads (default 1); no effect on the answer",
        "time_limit": "seconds after which the best so far is returned",
        "target_energy": "a read that gets there stops (default: none)",
    }

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        num_reads: int = 1,
        num_sweeps: int = 1000,
        num_restarts: int = 0,
        beta_range: Sequence[float] | None = None,
        schedule: str = "geometric",
        seed: int | None = None,
        initial_states: ArrayLike | None = None,
        num_threads: int = 1,
        time_limit: float | None = None,
        target_energy: float | None = None,
    ) -> Solution:
        """Anneal.

        Raises:
            InvalidOptionError: an option's value makes no sense; the message says which and why.
        """
        limits = Limits.of(num_threads, time_limit, target_energy)
        num_reads = positive_int("num_reads", num_reads)
        num_sweeps = positive_int("num_sweeps", num_sweeps)
        num_restarts = whole_number("num_restarts", num_restarts)
        reduction = reduced(problem)
        given = reduction.restrict(checked_states(problem, initial_states))
        problem = reduction.problem
        states, randoms = start_states(problem, num_reads, seed, given)
        layout = Layout.of(problem, search_dtype(problem))
        forms = forms_for(layout)
        quenched = _quenched(forms[-1], layout.sorted(states[0]), randoms[0])
        temperatures = temperatures_for(
            problem, layout.unsorted(quenched), num_sweeps, beta_range, schedule
        )

        def improve(read: Read, crossing: bool) -> Iterator[None]:
            hottest = _crossing_start(temperatures) if crossing else np.inf
            return anneal_steps(forms, read, np.minimum(temperatures, hottest))

        solution = search(
            layout,
            states,
            randoms,
            lambda read: improve_with_restarts(
                layout, read, improve, num_restarts, _POOL_SIZE, limits.target
            ),
            limits,
            {"beta_range": [float(1 / temperatures[0]), float(1 / temperatures[-1])]},
        )
        return reduction.lifted(solution)


def anneal_steps(forms: Sequence[Form], read: Read, temperatures: Floats) -> Iterator[None]:
    """Walk through the temperatures, always in the form that is cheapest at the last acceptance."""
    n = max(1, read.x.size)
    form = cheapest(forms, 1.0)
    kept, fresh_at = form.kept(read.x), read.tally[2]
    done = 0
    while done < temperatures.size:
        sweeps = max(1, _PROPOSALS_PER_STEP // max(1, form.proposals))
        # The acceptance is unknown at first and falls steeply: look again soon.
        sweeps = min(sweeps, max(1, temperatures.size // 50))
        acceptance = form.anneal(read, kept, temperatures[done : done + sweeps])
        done += sweeps
        yield
        chosen = cheapest(forms, acceptance)
        if chosen is not form or read.tally[2] - fresh_at > _MOVES_PER_REFRESH * n:
            form, kept, fresh_at = chosen, chosen.kept(read.x), read.tally[2]


def _crossing_start(temperatures: Floats) -> float:
    """Where to reheat a crossing to: hot enough to mix, not so hot that it is forgotten."""
    return float(temperatures[0] ** _REHEAT * temperatures[-1] ** (1 - _REHEAT))


def _quenched(form: Form, x: np.ndarray, random: np.ndarray) -> np.ndarray:
    """A state near a local minimum, by sweeps at temperature 0."""
    read = Read.start(x, random.copy())
    form.anneal(read, form.kept(x), np.zeros(_QUENCH_SWEEPS))
    return read.best

"""Border to samplers: sends problems and checks the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qprune.errors import SamplerError
from qprune.results import Fault
from solvers import QuadraticProblem
from solvers.ask import ProblemSampler, configured, counting
from solvers.errors import SamplerFailedError, SolverError, UnknownOptionError, WorkerDiedError
from solvers.foreign.border import NOT_FINITE
from solvers.problem.repair import repair


@dataclass(frozen=True, eq=False)
class Answer:
    """Best decision found for one problem, never worse than the present one.

    Attributes:
        sample: shape (n,), int8, 1 = pruned, counts exact.
        energy: of the sample, recomputed in float64, nats.
        lower_bound: no decision with these counts has less energy; -inf when unknown.
        seconds: wall time inside the sampler.
        info: information from the sampler, JSON-friendly.
        faults: failures before this answer.
    """

    sample: NDArray[np.int8]
    energy: float
    lower_bound: float
    seconds: float
    info: Mapping[str, Any]
    faults: tuple[Fault, ...] = ()


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


@dataclass(frozen=True, eq=False)
class Border:
    """Sampler with checked options, which keeps counts.

    Attributes:
        name: name in reports.
        sampler: takes problems, keeps counts.
        options: options of every call.
    """

    name: str
    sampler: ProblemSampler
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def to(cls, sampler: Any, options: Mapping[str, Any] | None = None) -> Border:
        """Return the border to a registered name or to any object with ``sample(bqm, ...)``.

        Raises:
            UnknownSamplerError: no such name.
            UnknownOptionError: an option that the sampler does not have.
        """
        options = dict(options or {})
        if isinstance(sampler, str):
            made, rest = configured(sampler, options)
            return cls(sampler, made, rest)
        made = counting(sampler)
        unknown = sorted(set(options) - set(made.parameters))
        if unknown:
            raise UnknownOptionError(
                f"{type(sampler).__name__} has no option {unknown[0]!r}; it has: "
                + ", ".join(sorted(made.parameters))
            )
        return cls(type(sampler).__name__, made, options)

    def solve(self, problem: QuadraticProblem, present: NDArray[np.int8], seed: int) -> Answer:
        """Return the best of the sampler's answers and the ``present`` decision.

        Raises:
            SamplerError: the sampler raised, or returned nothing, NaN, or wrong variables.
        """
        offered = {"seed": seed, "initial_states": present[None]}
        known = self.sampler.parameters
        options = {n: v for n, v in offered.items() if n in known} | dict(self.options)
        if options.get("time_limit") is not None and "num_reads" in known:
            # Here a time limit only ends a block early; it does not ask for reads to fill the time.
            options.setdefault("num_reads", getattr(self.sampler, "default_reads", 1))
        began = time.perf_counter()
        try:
            solution = self.sampler.sample_problem(problem, **options)
        except SamplerFailedError as error:
            raise SamplerError(str(error), problem=problem, answer=error.answer) from error
        except WorkerDiedError as error:
            raise SamplerError(
                f"sampler {self.name!r} on {problem.num_variables} variables: {error}",
                problem=problem,
            ) from error
        except (SolverError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise SamplerError(
                f"sampler {self.name!r} raised {type(error).__name__} on a block of "
                f"{problem.num_variables} variables: {error}",
                problem=problem,
            ) from error
        seconds = time.perf_counter() - began
        return self._checked(problem, present, solution, seconds)

    def _checked(
        self, problem: QuadraticProblem, present: NDArray[np.int8], solution: Any, seconds: float
    ) -> Answer:
        raw = np.asarray(getattr(solution, "samples", None))
        if raw.ndim != 2 or raw.shape[1] != problem.num_variables or not len(raw):
            raise SamplerError(
                f"sampler {self.name!r} returned samples of shape {raw.shape} for "
                f"{problem.num_variables} variables",
                problem=problem,
                answer=solution,
            )
        if not np.isin(raw, (0, 1)).all():
            raise SamplerError(
                f"sampler {self.name!r} returned values other than 0 and 1",
                problem=problem,
                answer=solution,
            )
        info = dict(getattr(solution, "info", {}))
        # Times are left out, since a run's records must not depend on the clock.
        info.pop("timing", None)
        feasible = problem.feasible(raw)
        if not feasible.all():
            info["repaired"] = float(1 - feasible.mean())
        states = np.concatenate([present[None], repair(problem, raw)]).astype(np.int8)
        energies = problem.energies(states)
        best = int(energies.argmin())
        told = float(getattr(solution, "lower_bound", -np.inf))
        # NaN is no bound; a bound above a state's energy is wrong.
        bound = -np.inf if np.isnan(told) else min(told, float(energies[best]))
        faults = tuple(_mended(self.name, info, solution))
        return Answer(states[best], float(energies[best]), bound, seconds, info, faults)


def _mended(name: str, info: Mapping[str, Any], solution: Any) -> Iterator[Fault]:
    """Yield faults of an answer that was repaired and used.

    Wrong counts are a fault only of samplers that keep counts; a penalty's violations are in
    ``info``.
    """
    if info.get("repaired") == 1.0:
        yield Fault("wrong counts", f"no sample of {name!r} has the counts", "repaired")
    energies = np.asarray(getattr(solution, "energies", ()), dtype=np.float64)
    if NOT_FINITE in info or not np.isfinite(energies).all():
        message = f"energies of sampler {name!r} are NaN or infinite"
        yield Fault("wrong energies", message, "computed again")

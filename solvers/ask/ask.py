"""One question to one sampler, and `solve`, the entry point for a caller with a problem."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dimod
import numpy as np
from numpy.typing import NDArray

from solvers.ask.answer import Answer, Fault
from solvers.ask.calls import Call, call_of
from solvers.ask.counting import ProblemSampler, configured, counting
from solvers.ask.policy import Fallback, FaultPolicy, KeepMask, Stop
from solvers.ask.store import AnswerStore, key_of
from solvers.errors import (
    InvalidOptionError,
    InvalidProblemError,
    SamplerFailedError,
    SolverError,
    UnknownOptionError,
    WorkerDiedError,
)
from solvers.foreign.border import NOT_FINITE
from solvers.formats.files import read_problem
from solvers.problem.gap import UNKNOWN, Gap
from solvers.problem.problem import QuadraticProblem
from solvers.problem.repair import repair
from solvers.problem.solution import Solution
from solvers.sampler import is_paid, is_repeatable

logger = logging.getLogger(__name__)

_FALLBACKS: dict[str, Fallback] = {"stop": Stop(), "keep": KeepMask()}
# Options that end a call by the clock.
_CLOCKED = {"time_limit", "timeout"}


@dataclass(frozen=True, eq=False)
class Ask:
    """Question to a sampler: called with a problem, it returns a checked answer.

    The one way from a problem to an answer. A sampler without counts is given a penalty, a call
    can be limited, isolated and retried (`FaultPolicy`), and whatever comes back is checked here,
    once: shape and values, counts (repaired where they are wrong), energies (recomputed).

    Args:
        name: in reports and messages.
        sampler: takes problems, keeps counts.
        options: of every call.
        on_fault: retry policy.
        store: of answers that cannot be had again; it becomes None where all can.
        fills_time: True to fill a time limit with reads, as `solve` does; False to let it only
            end a call early, with the sampler's usual number of reads.

    Raises:
        InvalidOptionError: the sampler cannot be sent to a process of its own.
        UnknownSamplerError: there is no such fallback.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.zeros((3, 3)), counts=2)
        >>> Ask.to("greedy")(problem, seed=1).sample.tolist()
        [0, 1, 1]
    """

    name: str
    sampler: ProblemSampler
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    on_fault: FaultPolicy = FaultPolicy()
    store: AnswerStore | None = None
    fills_time: bool = False
    _call: Call = field(init=False, repr=False)
    _fallback: Fallback = field(init=False, repr=False)

    def __post_init__(self) -> None:
        policy = self.on_fault
        call = call_of(self.sampler, time_limit=policy.time_limit, isolate=policy.isolate)
        object.__setattr__(self, "_call", call)
        object.__setattr__(self, "_fallback", _fallback(policy.fallback))
        if self.repeatable and not self.paid:
            object.__setattr__(self, "store", None)

    @classmethod
    def to(
        cls,
        sampler: Any,
        options: Mapping[str, Any] | None = None,
        on_fault: FaultPolicy = FaultPolicy(),
        store: AnswerStore | None = None,
        *,
        fills_time: bool = False,
    ) -> Ask:
        """Return the question to a registered name or to any object with ``sample(bqm, ...)``.

        Raises:
            UnknownSamplerError: no such name.
            UnknownOptionError: an option that the sampler does not have.
            InvalidOptionError: see `Ask`.
        """
        given = dict(options or {})
        if isinstance(sampler, str):
            made, rest = configured(sampler, given)
            return cls(sampler, made, rest, on_fault, store, fills_time)
        made = counting(sampler)
        name = (sampler if isinstance(sampler, type) else type(sampler)).__name__
        unknown = sorted(set(given) - set(made.parameters))
        if unknown:
            raise UnknownOptionError(
                f"{name} has no option {unknown[0]!r}; it has: "
                + ", ".join(sorted(made.parameters))
            )
        return cls(name, made, given, on_fault, store, fills_time)

    @property
    def paid(self) -> bool:
        """True if a call is charged for."""
        return is_paid(self.sampler)

    @property
    def repeatable(self) -> bool:
        """True if one seed gives one answer: the sampler is seeded, and no clock ends its calls."""
        return not _CLOCKED & set(self.options) and is_repeatable(self.sampler)

    def __call__(
        self, problem: QuadraticProblem, present: NDArray[np.int8] | None = None, seed: int = 0
    ) -> Answer:
        """Return the sampler's answer; `Answer.faults` lists the failures before it.

        Args:
            problem: to solve.
            present: shape (n,), int8, a state with exact counts: the sampler starts from it if it
                can, and the answer is never worse.
            seed: of the sampler, where it has one.

        Raises:
            SamplerFailedError: all attempts failed, and the fallback is to stop.
            InvalidOptionError: ``present`` is no such state, or an option has an invalid value.
        """
        if present is not None:
            _require_state(problem, present)
        if self.store is None:
            return self._answered(problem, present, seed)[0]
        key = key_of(self.name, self.options, problem, seed)
        answer = self.store.find(key, problem)
        if answer is None:
            answer, own = self._answered(problem, present, seed)
            if own:
                self.store.keep(key, answer)
        return answer

    def _answered(
        self, problem: QuadraticProblem, present: NDArray[np.int8] | None, seed: int
    ) -> tuple[Answer, bool]:
        """The answer, and whether it is the sampler's own."""
        faults: list[Fault] = []
        own = True
        try:
            answer = self._attempted(problem, present, seed, faults)
        except SamplerFailedError as error:
            answer, remedy = self._fallback.instead(error, problem, present, seed)
            logger.warning("%s: %s", error, remedy)
            faults[-1] = replace(faults[-1], remedy=remedy)
            own = False
        return replace(answer, faults=(*faults, *answer.faults)), own

    def _attempted(
        self,
        problem: QuadraticProblem,
        present: NDArray[np.int8] | None,
        seed: int,
        faults: list[Fault],
    ) -> Answer:
        for attempt in self.on_fault.attempts(self.paid):
            with attempt:
                try:
                    return self._once(problem, present, seed)
                except SamplerFailedError as error:
                    faults.append(Fault(_kind(error), str(error), "asked again"))
                    raise
        raise AssertionError("tenacity raises the last error")

    def _once(
        self, problem: QuadraticProblem, present: NDArray[np.int8] | None, seed: int
    ) -> Answer:
        known = self.sampler.parameters
        offered: dict[str, Any] = {"seed": seed}
        if present is not None:
            offered["initial_states"] = present[None]
        options = {n: v for n, v in offered.items() if n in known} | dict(self.options)
        limited = options.get("time_limit") is not None
        if limited and not self.fills_time and "num_reads" in known:
            options.setdefault("num_reads", getattr(self.sampler, "default_reads", 1))
        began = time.perf_counter()
        try:
            solution = self._call(problem, options)
        except SamplerFailedError as error:
            raise SamplerFailedError(str(error), problem=problem, answer=error.answer) from error
        except WorkerDiedError as error:
            raise SamplerFailedError(
                f"sampler {self.name!r} on {problem.num_variables} variables: {error}",
                problem=problem,
            ) from error
        except (SolverError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise SamplerFailedError(
                f"sampler {self.name!r} raised {type(error).__name__} on a block of "
                f"{problem.num_variables} variables: {error}",
                problem=problem,
            ) from error
        return checked(self.name, problem, present, solution, time.perf_counter() - began)


@dataclass(frozen=True)
class AnotherSampler:
    """Fallback to another sampler, by name or as an object; its errors are raised."""

    sampler: Any = "relax"

    def instead(
        self,
        error: SamplerFailedError,
        problem: QuadraticProblem,
        present: NDArray[np.int8] | None,
        seed: int,
    ) -> tuple[Answer, str]:
        ask = Ask.to(self.sampler)
        return ask(problem, present, seed), f"{ask.name!r} was asked instead"


def solve(
    problem: QuadraticProblem
    | dimod.BinaryQuadraticModel
    | dimod.ConstrainedQuadraticModel
    | str
    | Path,
    sampler: Any = "auto",
    *,
    present: NDArray[np.int8] | None = None,
    seed: int = 0,
    on_fault: FaultPolicy = FaultPolicy(),
    **options: object,
) -> Answer:
    """The best states of a problem, with the lower bound proved for them.

    Args:
        problem: a `QuadraticProblem`, a dimod BQM of either vartype or a CQM of exact counts, or
            the path of a file in any format that `qprune formats` lists.
        sampler: a name that `list_samplers` has, a class or an object with ``sample(bqm, ...)``;
            "auto" chooses one by the problem, see `solvers.composites.auto.RULES`.
        present: a state to start from, shape (n,), counts exact; the answer is never worse.
        seed: decides everything random, where the sampler has a seed.
        on_fault: limits, retries and a fallback for a sampler that fails.
        **options: of the sampler: ``time_limit`` (seconds), ``num_reads`` and its own.

    Raises:
        InvalidProblemError: ``problem`` is of another kind, or the file cannot be read.
        UnknownSamplerError: no sampler has that name.
        InvalidOptionError: an option has an invalid value.
        SamplerFailedError: the sampler raised, or returned nothing, NaN or wrong variables.

    Example:
        >>> import dimod
        >>> bqm = dimod.BinaryQuadraticModel({"a": 1.0, "b": -1.0}, {"ab": -2.0}, 0.0, "BINARY")
        >>> answer = solve(bqm)
        >>> answer.sample.tolist(), answer.energy, answer.proved
        ([1, 1], -2.0, True)
    """
    asked = as_problem(problem)
    return Ask.to(sampler, options, on_fault, fills_time=True)(asked, present, seed)


def as_problem(problem: Any) -> QuadraticProblem:
    """The problem in whatever `solve` takes.

    Raises:
        InvalidProblemError: it is of another kind, or the file cannot be read.

    Example:
        >>> as_problem(dimod.BinaryQuadraticModel({"a": 1.0}, {}, 0.0, "BINARY")).labels
        ('a',)
    """
    if isinstance(problem, QuadraticProblem):
        return problem
    if isinstance(problem, str | Path):
        return read_problem(problem)
    if isinstance(problem, dimod.ConstrainedQuadraticModel):
        return QuadraticProblem.from_cqm(problem)
    if isinstance(problem, dimod.BinaryQuadraticModel):
        return QuadraticProblem.from_bqm(problem)
    raise InvalidProblemError(
        f"a {type(problem).__name__} is not a problem; pass a QuadraticProblem, a dimod BQM or "
        "CQM, or the path of a file"
    )


def checked(
    name: str,
    problem: QuadraticProblem,
    present: NDArray[np.int8] | None,
    found: Any,
    seconds: float,
) -> Answer:
    """The answer in what the sampler ``name`` returned after ``seconds``.

    Args:
        name: in messages.
        problem: as asked.
        present: a state that the answer must not be worse than.
        found: has ``samples``; its energies are not believed, its ``lower_bound`` is.
        seconds: of the call.

    Raises:
        SamplerFailedError: no samples, of another shape, or other than 0 and 1.
    """
    raw = np.asarray(getattr(found, "samples", None))
    if raw.ndim != 2 or raw.shape[1] != problem.num_variables or not len(raw):
        raise SamplerFailedError(
            f"sampler {name!r} returned samples of shape {raw.shape} for "
            f"{problem.num_variables} variables",
            problem=problem,
            answer=found,
        )
    if not np.isin(raw, (0, 1)).all():
        raise SamplerFailedError(
            f"sampler {name!r} returned values other than 0 and 1", problem=problem, answer=found
        )
    info = dict(getattr(found, "info", {}))
    timing = info.pop("timing", {})
    states, feasible = raw.astype(np.int8), problem.feasible(raw)
    if not feasible.all():
        info["repaired"] = float(1 - feasible.mean())
        states = repair(problem, states)
    states, energies = _ordered(problem, present, states)
    told = float(getattr(found, "lower_bound", -np.inf))
    # NaN is no bound; a bound above a state's energy is wrong.
    bound = -np.inf if np.isnan(told) else min(told, float(energies[0]))
    return Answer(
        states,
        energies,
        bound,
        info,
        _certified(problem, states[0], bound, found),
        seconds=seconds,
        timing=timing,
        faults=tuple(_mended(name, info, found)),
    )


def _ordered(
    problem: QuadraticProblem, present: NDArray[np.int8] | None, states: NDArray[np.int8]
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """States and energies, best first; led by the ``present`` one where none is better."""
    if present is None:
        energies = problem.energies(states)
        order = np.argsort(energies, kind="stable")
        return states[order], energies[order]
    both = np.concatenate([present[None], states]).astype(np.int8)
    energies = problem.energies(both)
    order = 1 + np.argsort(energies[1:], kind="stable")
    best = order[0]
    if energies[0] <= energies[best]:
        found = order[1:] if np.array_equal(both[0], both[best]) else order
        order = np.concatenate([[0], found])
    return both[order], energies[order]


def _certified(problem: QuadraticProblem, state: NDArray[np.int8], bound: float, found: Any) -> Gap:
    """The gap of the best state: the sampler's own, where it is of that state and bound."""
    if not np.isfinite(bound):
        return UNKNOWN
    told = getattr(found, "certified", None)
    same = bound == found.lower_bound and np.array_equal(state, found.samples[0])
    if same and isinstance(told, Gap) and told is not UNKNOWN:
        return told
    return Solution.of(problem, state, lower_bound=bound).certified


def _mended(name: str, info: Mapping[str, Any], found: Any) -> Iterator[Fault]:
    """Yield faults of an answer that was repaired and used.

    Wrong counts are a fault only of samplers that keep counts; a penalty's violations are in
    ``info``.
    """
    if info.get("repaired") == 1.0:
        yield Fault("wrong counts", f"no sample of {name!r} has the counts", "repaired")
    energies = np.asarray(getattr(found, "energies", ()), dtype=np.float64)
    if NOT_FINITE in info or not np.isfinite(energies).all():
        message = f"energies of sampler {name!r} are NaN or infinite"
        yield Fault("wrong energies", message, "computed again")


def _require_state(problem: QuadraticProblem, present: NDArray[np.int8]) -> None:
    state = np.asarray(present)
    right = state.shape == (problem.num_variables,) and np.isin(state, (0, 1)).all()
    if not right or not problem.feasible(state[None]).all():
        raise InvalidOptionError(
            f"present must be one state of {problem.num_variables} values 0 and 1 with the "
            "problem's exact counts; pass such a state, or none"
        )


def _fallback(fallback: Fallback | str) -> Fallback:
    if not isinstance(fallback, str):
        return fallback
    if fallback in _FALLBACKS:
        return _FALLBACKS[fallback]
    Ask.to(fallback)  # Refused here, not after hours.
    return AnotherSampler(fallback)


def _kind(error: SamplerFailedError) -> str:
    cause = error.__cause__
    if isinstance(cause, WorkerDiedError):
        return "timeout" if cause.timed_out else "crash"
    return "sampler"

"""What is done about samplers that fail: wait and ask again, then fall back."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from qprune.answers import AnswerStore, key_of
from qprune.errors import ImpossibleRequestError, SamplerError
from qprune.solve import Answer, Border
from qprune.steps import Fault
from solvers import QuadraticProblem
from solvers.errors import WorkerDiedError
from solvers.isolation import Isolated, TimeLimited

logger = logging.getLogger(__name__)

_REMOTE_RETRIES = 3
_LONGEST_WAIT = 60.0


class Fallback(Protocol):
    """A strategy: what answers a block when the sampler has failed for good."""

    def instead(
        self, error: SamplerError, problem: QuadraticProblem, present: NDArray[np.int8], seed: int
    ) -> tuple[Answer, str]:
        """Another answer and, for the report, what it is; or raise ``error``."""
        ...


@dataclass(frozen=True)
class Stop:
    """The run ends with the error; its folder can be resumed."""

    def instead(
        self, error: SamplerError, problem: QuadraticProblem, present: NDArray[np.int8], seed: int
    ) -> tuple[Answer, str]:
        raise error


@dataclass(frozen=True)
class KeepMask:
    """The block's decisions stay as they are."""

    def instead(
        self, error: SamplerError, problem: QuadraticProblem, present: NDArray[np.int8], seed: int
    ) -> tuple[Answer, str]:
        energy = problem.energy(present)
        return Answer(present, energy, -np.inf, 0.0, {}), "the mask stays as it was"


@dataclass(frozen=True)
class Ask:
    """Another sampler is asked, by name or as an object; what it raises ends the run."""

    sampler: Any = "relax"

    def instead(
        self, error: SamplerError, problem: QuadraticProblem, present: NDArray[np.int8], seed: int
    ) -> tuple[Answer, str]:
        border = Border.to(self.sampler)
        return border.solve(problem, present, seed), f"{border.name!r} was asked instead"


@dataclass(frozen=True)
class Care:
    """How a run deals with samplers that hang, crash, or answer nonsense.

    Args:
        time_limit: seconds for one call; None = as long as it takes.
        isolate: whether each call is made in a process of its own, which is killed at the limit
            and may crash; without it a call that hangs is left behind and no longer waited for.
        retries: how often a failed call is made again; by default 3 times where the sampler is
            remote and 0 where it is not.
        wait: seconds before the first of them; each further wait is twice as long, at most 60.
        fallback: "stop", "keep" (the mask as it is), a sampler's name, or a strategy.

    Raises:
        ImpossibleRequestError: a number makes no sense.
    """

    time_limit: float | None = None
    isolate: bool = False
    retries: int | None = None
    wait: float = 1.0
    fallback: Fallback | str = "stop"

    def __post_init__(self) -> None:
        if self.time_limit is not None and not self.time_limit > 0:
            raise ImpossibleRequestError(
                f"the sampler's time limit must be more than 0 s, not {self.time_limit!r}"
            )
        if self.retries is not None and not self.retries >= 0:
            raise ImpossibleRequestError(f"retries must be at least 0, not {self.retries!r}")
        if not self.wait >= 0:
            raise ImpossibleRequestError(f"wait must be at least 0 s, not {self.wait!r}")

    def over(self, border: Border, answers: AnswerStore | None = None) -> CarefulBorder:
        """``border`` with this care; ``answers`` keeps those that cannot be had again.

        Raises:
            InvalidOptionError: the sampler cannot be isolated.
            UnknownSamplerError: there is no such fallback.
        """
        sampler: Any = border.sampler
        remote = is_paid(sampler)
        keep = remote or not _repeats(border)
        if self.isolate:
            sampler = Isolated(sampler, time_limit=self.time_limit)
        elif self.time_limit is not None:
            sampler = TimeLimited(sampler, time_limit=self.time_limit)
        usual = _REMOTE_RETRIES if remote else 0
        return CarefulBorder(
            replace(border, sampler=sampler),
            usual if self.retries is None else self.retries,
            self.wait,
            _fallback(self.fallback),
            answers if keep else None,
        )


@dataclass(frozen=True, eq=False)
class CarefulBorder:
    """A border whose failures are got over where that was asked.

    Attributes:
        border: to the sampler.
        retries: see `Care`.
        wait: see `Care`.
        fallback: asked when all has failed.
        answers: those that cannot be had again; None where all can.
    """

    border: Border
    retries: int
    wait: float
    fallback: Fallback
    answers: AnswerStore | None = None

    @property
    def name(self) -> str:
        """How reports call the sampler."""
        return self.border.name

    def solve(self, problem: QuadraticProblem, present: NDArray[np.int8], seed: int) -> Answer:
        """See `Border.solve`; `Answer.faults` tells what was got over.

        Raises:
            SamplerError: all attempts failed, and the fallback is to stop.
        """
        key = "" if self.answers is None else key_of(self.border, problem, seed)
        known = None if self.answers is None else self.answers.find(key, problem)
        if known is not None:
            return known
        faults: list[Fault] = []
        try:
            answer = self._asked(problem, present, seed, faults)
            failed = False
        except SamplerError as error:
            answer, remedy = self.fallback.instead(error, problem, present, seed)
            logger.warning("%s: %s", error, remedy)
            faults[-1] = replace(faults[-1], remedy=remedy)
            failed = True
        answer = replace(answer, faults=(*faults, *answer.faults))
        if self.answers is not None and not failed:
            self.answers.keep(key, answer)
        return answer

    def _asked(
        self,
        problem: QuadraticProblem,
        present: NDArray[np.int8],
        seed: int,
        faults: list[Fault],
    ) -> Answer:
        attempts = Retrying(
            retry=retry_if_exception_type(SamplerError),
            stop=stop_after_attempt(self.retries + 1),
            wait=wait_exponential(self.wait, max=_LONGEST_WAIT),
            reraise=True,
        )
        for attempt in attempts:
            with attempt:
                try:
                    return self.border.solve(problem, present, seed)
                except SamplerError as error:
                    faults.append(Fault(_kind(error), str(error), "asked again"))
                    raise
        raise AssertionError("tenacity raises the last error")


def is_paid(sampler: Any) -> bool:
    """Whether calls of ``sampler``, or of one it wraps, are made to a machine that charges."""
    while sampler is not None:
        if hasattr(sampler, "meter"):
            return True
        sampler = getattr(sampler, "child", None)
    return False


def _repeats(border: Border) -> bool:
    """Whether the same question gets the same answer: ours, or seeded, and no clock in it."""
    clocked = {"time_limit", "timeout"} & set(border.options)
    ours = type(border.sampler).__module__.partition(".")[0] == "solvers"
    own = ours and not hasattr(border.sampler, "child")
    return not clocked and (own or "seed" in border.sampler.parameters)


def _fallback(fallback: Fallback | str) -> Fallback:
    if not isinstance(fallback, str):
        return fallback
    if fallback in _FALLBACKS:
        return _FALLBACKS[fallback]
    Border.to(fallback)  # Refused here, not after hours.
    return Ask(fallback)


_FALLBACKS: dict[str, Fallback] = {"stop": Stop(), "keep": KeepMask()}


def _kind(error: SamplerError) -> str:
    cause = error.__cause__
    if isinstance(cause, WorkerDiedError):
        return "timeout" if cause.timed_out else "crash"
    return "sampler"

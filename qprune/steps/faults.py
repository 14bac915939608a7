"""Retry and fallback for samplers that fail."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from qprune.errors import ImpossibleRequestError, SamplerError
from qprune.results import Fault
from qprune.steps.answers import AnswerStore, key_of
from qprune.steps.solve import Answer, Border
from solvers import QuadraticProblem
from solvers.errors import WorkerDiedError
from solvers.foreign.isolation import Isolated, TimeLimited

logger = logging.getLogger(__name__)

_REMOTE_RETRIES = 3
_LONGEST_WAIT = 60.0


class Fallback(Protocol):
    """Protocol of a fallback: answers a block after all retries have failed."""

    def instead(
        self, error: SamplerError, problem: QuadraticProblem, present: NDArray[np.int8], seed: int
    ) -> tuple[Answer, str]:
        """Return another answer and its name for the report; or raise ``error``."""
        ...


@dataclass(frozen=True)
class Stop:
    """Fallback that ends the run with the error; its folder can be resumed."""

    def instead(
        self, error: SamplerError, problem: QuadraticProblem, present: NDArray[np.int8], seed: int
    ) -> tuple[Answer, str]:
        raise error


@dataclass(frozen=True)
class KeepMask:
    """Fallback that leaves the block's decisions unchanged."""

    def instead(
        self, error: SamplerError, problem: QuadraticProblem, present: NDArray[np.int8], seed: int
    ) -> tuple[Answer, str]:
        energy = problem.energy(present)
        return Answer(present, energy, -np.inf, 0.0, {}), "the mask stays as it was"


@dataclass(frozen=True)
class Ask:
    """Fallback to another sampler, by name or as an object; its errors end the run."""

    sampler: Any = "relax"

    def instead(
        self, error: SamplerError, problem: QuadraticProblem, present: NDArray[np.int8], seed: int
    ) -> tuple[Answer, str]:
        border = Border.to(self.sampler)
        return border.solve(problem, present, seed), f"{border.name!r} was asked instead"


@dataclass(frozen=True)
class Care:
    """Retry policy for samplers that hang, crash, or give invalid answers.

    Args:
        time_limit: seconds for one call; None = no limit.
        isolate: make each call in a process of its own, which is killed at the limit
            and may crash; without it a call that hangs is abandoned.
        retries: number of retries of a failed call; by default 3 for a remote sampler
            and 0 for any other.
        wait: seconds before the first retry; each further wait is twice as long, at most 60.
        fallback: "stop", "keep" (the mask as it is), a sampler's name, or a strategy.

    Raises:
        ImpossibleRequestError: a number is out of range.

    Example:
        >>> Care(retries=2, fallback="keep").retries
        2
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
        """Return ``border`` with this policy; ``answers`` stores those that cannot be repeated.

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
    """Border with retries and a fallback.

    Attributes:
        border: to the sampler.
        retries: see `Care`.
        wait: see `Care`.
        fallback: used when all attempts have failed.
        answers: store of answers that cannot be repeated; None where all can.
    """

    border: Border
    retries: int
    wait: float
    fallback: Fallback
    answers: AnswerStore | None = None

    @property
    def name(self) -> str:
        """Sampler's name in reports."""
        return self.border.name

    def solve(self, problem: QuadraticProblem, present: NDArray[np.int8], seed: int) -> Answer:
        """Solve as `Border.solve`; `Answer.faults` lists the failures before success.

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
    """Return True if ``sampler``, or one that it wraps, calls a machine that charges."""
    while sampler is not None:
        if hasattr(sampler, "meter"):
            return True
        sampler = getattr(sampler, "child", None)
    return False


def _repeats(border: Border) -> bool:
    """Return True if a sampler repeats its answers: built in or seeded, and without a clock."""
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

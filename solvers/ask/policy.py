"""Retry and fallback for samplers that fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from solvers.ask.answer import Answer
from solvers.errors import InvalidOptionError, SamplerFailedError
from solvers.problem.problem import QuadraticProblem

_RETRIES_OF_PAID = 3
_LONGEST_WAIT = 60.0


class Fallback(Protocol):
    """Protocol of a fallback: answers a problem after all retries have failed."""

    def instead(
        self,
        error: SamplerFailedError,
        problem: QuadraticProblem,
        present: NDArray[np.int8] | None,
        seed: int,
    ) -> tuple[Answer, str]:
        """Return another answer and its name for the report; or raise ``error``."""
        ...


@dataclass(frozen=True)
class Stop:
    """Fallback that raises the error; a pruning run ends with it, and can be resumed."""

    def instead(
        self,
        error: SamplerFailedError,
        problem: QuadraticProblem,
        present: NDArray[np.int8] | None,
        seed: int,
    ) -> tuple[Answer, str]:
        raise error


@dataclass(frozen=True)
class KeepMask:
    """Fallback to the present state; raises the error where none was given."""

    def instead(
        self,
        error: SamplerFailedError,
        problem: QuadraticProblem,
        present: NDArray[np.int8] | None,
        seed: int,
    ) -> tuple[Answer, str]:
        if present is None:
            raise error
        return Answer.of_state(problem, present), "the mask stays as it was"


@dataclass(frozen=True)
class FaultPolicy:
    """Retry policy for samplers that hang, crash, or give invalid answers.

    Args:
        time_limit: seconds for one call; None = no limit.
        isolate: make each call in a process of its own, which is killed at the limit
            and may crash; without it a call that hangs is abandoned.
        retries: number of retries of a failed call; by default 3 for a sampler that is paid
            and 0 for any other.
        wait: seconds before the first retry; each further wait is twice as long, at most 60.
        fallback: "stop", "keep" (the present state), a sampler's name, or a strategy.

    Raises:
        InvalidOptionError: a number is out of range.

    Example:
        >>> FaultPolicy(retries=2, fallback="keep").retries
        2
    """

    time_limit: float | None = None
    isolate: bool = False
    retries: int | None = None
    wait: float = 1.0
    fallback: Fallback | str = "stop"

    def __post_init__(self) -> None:
        if self.time_limit is not None and not self.time_limit > 0:
            raise InvalidOptionError(
                f"the sampler's time limit must be more than 0 s, not {self.time_limit!r}"
            )
        if self.retries is not None and not self.retries >= 0:
            raise InvalidOptionError(f"retries must be at least 0, not {self.retries!r}")
        if not self.wait >= 0:
            raise InvalidOptionError(f"wait must be at least 0 s, not {self.wait!r}")

    def attempts(self, paid: bool) -> Retrying:
        """Return the attempts at one call; the last one's error is raised."""
        usual = _RETRIES_OF_PAID if paid else 0
        retries = usual if self.retries is None else self.retries
        return Retrying(
            retry=retry_if_exception_type(SamplerFailedError),
            stop=stop_after_attempt(retries + 1),
            wait=wait_exponential(self.wait, max=_LONGEST_WAIT),
            reraise=True,
        )

"""The cost of paid backends: shown before a call, kept within a budget, recorded after it.

Charges are seconds of solver time, the unit that D-Wave's Leap bills.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dimod

from solvers.errors import ChargeRefusedError, InvalidOptionError
from solvers.host.disk import Disk

logger = logging.getLogger(__name__)

_MICROSECONDS = 1e-6


@dataclass(frozen=True)
class Submission:
    """One paid call, before it is made.

    Attributes:
        sampler: the sampler's name.
        num_variables: of the problem.
        seconds: what will be charged, as well as can be known beforehand.
        minimum_seconds: the least that the backend charges for this problem.
        spent_seconds: charged so far by the same sampler object.
    """

    sampler: str
    num_variables: int
    seconds: float
    minimum_seconds: float
    spent_seconds: float


@dataclass(frozen=True)
class Submitted:
    """A paid call that the backend has accepted and not yet answered.

    Attributes:
        sampler: the sampler's name.
        problem_id: the backend's name for it, under which the answer can be fetched later.
    """

    sampler: str
    problem_id: str


@dataclass(frozen=True)
class Charge:
    """A paid call that has been answered.

    Attributes:
        sampler: the sampler's name.
        problem_id: the backend's name for it, "" if it gave none.
        seconds: what it charged, as reported by the backend.
        qpu_seconds: time on a quantum processor.
    """

    sampler: str
    problem_id: str
    seconds: float
    qpu_seconds: float


PaidEvent = Submission | Submitted | Charge


class Meter:
    """The budget and the record of the paid calls of one sampler object.

    Args:
        name: the sampler's name.
        max_charge_seconds: budget of all calls together; None is no budget.
        confirm: called with the `Submission` before each call; False declines it.
        observe: called with every `Submission`, `Submitted` and `Charge`.
        problem_ids: a file to which problem ids are appended as soon as they are known.

    Raises:
        InvalidOptionError: the budget is negative or not a number.
    """

    def __init__(
        self,
        name: str,
        *,
        max_charge_seconds: float | None = None,
        confirm: Callable[[Submission], bool] | None = None,
        observe: Callable[[PaidEvent], None] | None = None,
        problem_ids: str | Path | None = None,
    ) -> None:
        if max_charge_seconds is not None and not max_charge_seconds >= 0:
            raise InvalidOptionError(
                f"max_charge_seconds must be at least 0, not {max_charge_seconds!r}"
            )
        self.name = name
        self.spent_seconds = 0.0
        self.last_problem_id = ""
        self._budget = max_charge_seconds
        self._confirm = confirm
        self._observe = observe
        self._problem_ids = None if problem_ids is None else Path(problem_ids)

    def approve(self, num_variables: int, seconds: float, minimum_seconds: float) -> None:
        """Show what a call costs; refuse it over budget, or when it is declined.

        Raises:
            ChargeRefusedError: past the budget, or declined by ``confirm``.
        """
        self.last_problem_id = ""
        call = Submission(self.name, num_variables, seconds, minimum_seconds, self.spent_seconds)
        logger.info(
            "%s: %d variables, about %.3g s will be charged (at least %.3g s), %.3g s so far",
            *(self.name, num_variables, seconds, minimum_seconds, self.spent_seconds),
        )
        self._tell(call)
        if self._budget is not None and self.spent_seconds + seconds > self._budget:
            raise ChargeRefusedError(
                f"{self.name}: the call costs about {seconds:.3g} s and {self.spent_seconds:.3g} s "
                f"are spent, which is past max_charge_seconds={self._budget:.3g}; raise it, or "
                "ask for fewer reads or less time"
            )
        if self._confirm is not None and not self._confirm(call):
            raise ChargeRefusedError(f"{self.name}: the call of about {seconds:.3g} s was declined")

    def collect(self, answer: dimod.SampleSet, estimate: float) -> dimod.SampleSet:
        """Store the problem id, wait for the answer, and record its charge.

        Args:
            answer: what the backend's client returned, resolved or not.
            estimate: recorded where the backend does not report its charge.
        """
        self._note(answer.wait_id())
        answer.resolve()
        self._note(answer.info.get("problem_id"))
        timing = answer.info.get("timing", {})
        qpu = timing.get("qpu_access_time", answer.info.get("qpu_access_time", 0.0))
        charged = answer.info.get("charge_time", timing.get("qpu_access_time"))
        seconds = estimate if charged is None else _MICROSECONDS * float(charged)
        self.spent_seconds += seconds
        charge = Charge(self.name, self.last_problem_id, seconds, _MICROSECONDS * float(qpu))
        logger.info("%s: problem %s charged %.3g s", self.name, charge.problem_id or "?", seconds)
        self._tell(charge)
        answer.info.update(
            problem_id=charge.problem_id,
            charge_seconds=charge.seconds,
            qpu_seconds=charge.qpu_seconds,
        )
        return answer

    def _note(self, problem_id: object) -> None:
        if not problem_id or self.last_problem_id:
            return
        self.last_problem_id = str(problem_id)
        if self._problem_ids is not None:
            Disk().append_line(self._problem_ids, f"{self.name} {self.last_problem_id}", flush=True)
        logger.info("%s: submitted as problem %s", self.name, self.last_problem_id)
        self._tell(Submitted(self.name, self.last_problem_id))

    def _tell(self, event: PaidEvent) -> None:
        if self._observe is not None:
            self._observe(event)


def redacted(message: object) -> str:
    """A message without anything that looks like an access token."""
    text = re.sub(
        r"\b[A-Za-z0-9]+-[0-9a-fA-F]{30,}\b|\b[0-9a-fA-F]{40,}\b", "[token]", str(message)
    )
    return re.sub(r"(?i)(token['\"]?\s*[:=]\s*)['\"]?[^\s,'\"}]+", r"\1[token]", text)

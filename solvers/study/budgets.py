"""Budgets of a run: seconds, reads or sweeps, in the sampler's own options."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, cast

from pydantic import Field

from solvers.errors import StudyError
from solvers.host.ranges import MAX_SECONDS, NUMBER, Number, checked, quoted

#: Options that count sweeps (moves or steps per variable).
SWEEP_OPTIONS = ("num_sweeps", "num_steps")
#: Options that stop by the clock, and how many of their units are a second.
CLOCK_OPTIONS: Mapping[str, float] = {"time_limit": 1.0, "timeout": 1000.0}
#: Reads of the next call, relative to all calls before it, grow by this at most.
_GROWTH = 8


@dataclass(frozen=True)
class Call:
    """One call of a sampler within a run.

    Attributes:
        elapsed: seconds since the run began, when the call returned.
        answer: what it returned.
    """

    elapsed: float
    answer: Any


Ask = Callable[..., Any]
"""Calls the sampler with options and returns what it answers."""

Clock = Callable[[], float]
"""Seconds since some moment."""

#: Wall time, as users wait; or CPU time, which other work on the machine does not change.
CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
#: The shortest time budget, seconds: clocks and calls take part of it.
LEAST_SECONDS = 1e-3
_BudgetSeconds = Annotated[
    float, NUMBER, Field(ge=LEAST_SECONDS, le=MAX_SECONDS, allow_inf_nan=False)
]
_EXAMPLES = "like 0.5s, 100reads or 1000sweeps"
# A remote sampler uses hardly any CPU time: its run ends by the wall clock.
_WALL_PER_CPU = 20.0


class Budget(Protocol):
    """The budget of one run."""

    #: The unit: "seconds", "reads" or "sweeps".
    kind: ClassVar[str]

    @property
    def amount(self) -> float:
        """Number of seconds, reads or sweeps."""
        ...

    def refusal(self, takes: frozenset[str]) -> str:
        """The reason why a sampler with options ``takes`` cannot keep the budget; "" if it can."""
        ...

    def spend(
        self, ask: Ask, takes: frozenset[str], reads: int, seed: int, clock: Clock
    ) -> list[Call]:
        """Call the sampler until the budget is spent."""
        ...


def _require(budget: Budget, kind: Any) -> None:
    whole = kind is Number and isinstance(budget.amount, float) and budget.amount.is_integer()
    try:
        checked(kind, int(budget.amount) if whole else budget.amount, "it")
    except ValueError as error:
        raise StudyError(f"a budget of {budget.kind}: {error}; it is {_EXAMPLES}") from error


def _seeded(takes: frozenset[str], seed: int, call: int = 0) -> dict[str, Any]:
    # Seeds are run's seed + call's number; two runs share one with probability 1e-9.
    return {"seed": (seed + call) % 2**31} if "seed" in takes else {}


@dataclass(frozen=True)
class Reads:
    """A number of independent reads, in one call.

    Raises:
        StudyError: no whole number of them, or none.

    Example:
        >>> Reads(100).refusal(frozenset({"seed"}))
        'it has no option num_reads'
    """

    amount: float
    kind: ClassVar[str] = "reads"

    def __post_init__(self) -> None:
        _require(self, Number)

    def refusal(self, takes: frozenset[str]) -> str:
        """Reads need the option ``num_reads``."""
        return "" if "num_reads" in takes else "it has no option num_reads"

    def spend(
        self, ask: Ask, takes: frozenset[str], reads: int, seed: int, clock: Clock
    ) -> list[Call]:
        """One call."""
        began = clock()
        answer = ask(num_reads=int(self.amount), **_seeded(takes, seed))
        return [Call(clock() - began, answer)]


@dataclass(frozen=True)
class Sweeps:
    """A number of sweeps in each of the sampler's own number of reads, in one call.

    Raises:
        StudyError: no whole number of them, or none.

    Example:
        >>> Sweeps(1000).refusal(frozenset({"num_sweeps"}))
        ''
    """

    amount: float
    kind: ClassVar[str] = "sweeps"

    def __post_init__(self) -> None:
        _require(self, Number)

    def refusal(self, takes: frozenset[str]) -> str:
        """Sweeps need one of the options that count them."""
        known = ", ".join(SWEEP_OPTIONS)
        return "" if takes.intersection(SWEEP_OPTIONS) else f"it has no option among {known}"

    def spend(
        self, ask: Ask, takes: frozenset[str], reads: int, seed: int, clock: Clock
    ) -> list[Call]:
        """One call."""
        name = next(name for name in SWEEP_OPTIONS if name in takes)
        began = clock()
        answer = ask(**{name: int(self.amount)}, **_seeded(takes, seed))
        return [Call(clock() - began, answer)]


@dataclass(frozen=True)
class Seconds:
    """Seconds in the sampler, by the study's clock.

    A sampler that stops by the clock (`CLOCK_OPTIONS`) gets the time left. One that counts
    reads is called repeatedly, with as many reads as will fit by the speed of earlier calls.
    The last call may end late, by less than half a read where reads take equally long.

    Raises:
        StudyError: less than `LEAST_SECONDS`, or more than 30 years.

    Example:
        >>> Seconds(0.5).amount
        0.5
    """

    amount: float
    kind: ClassVar[str] = "seconds"

    def __post_init__(self) -> None:
        _require(self, _BudgetSeconds)

    def refusal(self, takes: frozenset[str]) -> str:
        """Every sampler can keep a time, if need be by being called once."""
        return ""

    def spend(
        self, ask: Ask, takes: frozenset[str], reads: int, seed: int, clock: Clock
    ) -> list[Call]:
        """Call after call while at least half of another read fits."""
        stops = next((name for name in CLOCK_OPTIONS if name in takes), None)
        latest = time.perf_counter() + _WALL_PER_CPU * self.amount
        calls: list[Call] = []
        began, done, batch = clock(), 0, reads
        while True:
            elapsed = clock() - began
            options = _seeded(takes, seed, len(calls))
            if stops is not None:
                options[stops] = _in_units(stops, self.amount - elapsed, batch)
            if "num_reads" in takes:
                options["num_reads"] = batch
            answer = ask(**options)
            elapsed = clock() - began
            calls.append(Call(elapsed, answer))
            done += batch
            fitting = (self.amount - elapsed) * done / max(elapsed, 1e-9)
            done_with = "seed" not in takes or _proved(answer) or time.perf_counter() > latest
            if done_with or fitting < 0.5 * reads:
                return calls
            batch = 1
            if "num_reads" in takes:
                batch = max(reads, min(int(fitting), _GROWTH * done))


def _in_units(option: str, seconds: float, reads: int) -> float:
    scaled = max(0.0, seconds) * CLOCK_OPTIONS[option]
    # D-Wave's tabu search counts whole milliseconds, for each read anew.
    return scaled if option == "time_limit" else max(1, round(scaled / reads))


def _proved(answer: Any) -> bool:
    """True if the answer is proved, so that more calls cannot improve it."""
    info = getattr(answer, "info", None)
    proved = isinstance(info, Mapping) and cast(Mapping[str, Any], info).get("proved", False)
    return bool(proved)


_UNITS: dict[str, type[Seconds] | type[Reads] | type[Sweeps]] = {
    "s": Seconds,
    "seconds": Seconds,
    "reads": Reads,
    "sweeps": Sweeps,
}


_WRITTEN = re.compile(
    r"\s*\+?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?)\s*(s|seconds|reads|sweeps)\s*", re.A | re.I
)


def parse_budget(budget: str | Budget) -> Budget:
    """``"0.5s"``, ``"100 reads"`` or ``"1e3sweeps"`` as a budget; a budget as it is.

    Raises:
        StudyError: it is none of these, or out of range.

    Example:
        >>> parse_budget("0.5s"), parse_budget("100 reads")
        (Seconds(amount=0.5), Reads(amount=100.0))
    """
    if not isinstance(budget, str):
        if not hasattr(budget, "spend"):
            raise StudyError(f"a budget is {_EXAMPLES}, not {quoted(budget)}")
        return budget
    match = _WRITTEN.fullmatch(budget)
    if match is None:
        raise StudyError(f"a budget is {_EXAMPLES}, not {quoted(budget)}")
    return _UNITS[match[4].lower()](float(match[1]))

"""What the composites that make others count have in common: rounds, repair, the best so far."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import dimod
import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.clock import Deadline
from solvers.errors import ChargeRefusedError
from solvers.foreign import NOT_FINITE, ForeignSampler, refuse_unknown
from solvers.problem import QuadraticProblem
from solvers.repair import repair
from solvers.sampler import CountingSampler, States, checked_states, positive_int
from solvers.solution import Solution
from solvers.strength import with_matrix


@dataclass(frozen=True)
class Round:
    """One call of the child.

    Attributes:
        strength: the penalty, or the multipliers, that the child was given.
        feasible: share of its samples with exact counts, before repair.
        energy: best energy of the round after repair, of the problem as asked.
    """

    strength: float | tuple[float, ...]
    feasible: float
    energy: float


class CountingComposite(CountingSampler, dimod.ComposedSampler):
    """What both composites share: one child, rounds, repair, and the best of everything seen.

    Args:
        child: any object with ``sample(bqm, **options) -> dimod.SampleSet``.
    """

    own_options: ClassVar[Mapping[str, str]] = {}

    def __init__(self, child: Any) -> None:
        self._child = child if isinstance(child, ForeignSampler) else ForeignSampler(child)

    @property
    def children(self) -> list[dimod.Sampler]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The one child."""
        return [self._child]

    @property
    def options(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The composite's own options, then the child's."""
        theirs = dict.fromkeys(self._child.parameters, f"as in {self._child.name}")
        return theirs | dict(self.own_options)

    @property
    def properties(self) -> dict[str, Any]:
        """What the composite can do; the child's under ``child``."""
        return {**super().properties, "child": self._child.properties}

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        max_rounds: int = 8,
        time_limit: float | None = None,
        initial_states: ArrayLike | None = None,
        **options: Any,
    ) -> Solution:
        """Solve with exact counts; see the class for ``options``.

        An interrupt, and a budget that is used up between rounds, end the search with the best
        so far; ``info`` then has ``interrupted``, or ``info["penalty"]`` has ``stopped``.

        Raises:
            UnknownOptionError: an option that neither the composite nor its child has.
            InvalidOptionError: an option has a value that makes no sense.
            SamplerFailedError: the child raised, or its answer is not one.
            ProblemTooLargeError: the model that the child needs does not fit into memory.
        """
        refuse_unknown(type(self).__name__, options, self.options)
        limits = positive_int("max_rounds", max_rounds), Deadline(time_limit)
        search = Search(with_matrix(problem), *limits)
        given = checked_states(problem, initial_states)
        if given is not None:
            search.keep(given)
        theirs = self._for_child(options, given, time_limit)
        mine = {name: options[name] for name in options if name in self.own_options}
        try:
            self._rounds(search, theirs, mine)
        except KeyboardInterrupt:
            if not search.states:
                raise
            search.interrupted = True
        except ChargeRefusedError as refused:
            if not search.rounds:
                raise
            search.info["stopped"] = str(refused)
        return search.solution(problem)

    @abstractmethod
    def _rounds(self, search: Search, theirs: dict[str, Any], mine: Mapping[str, Any]) -> None:
        """Call the child with ``theirs``, through ``search``, until satisfied."""

    def _for_child(
        self, options: Mapping[str, Any], given: States | None, time_limit: float | None
    ) -> dict[str, Any]:
        takes = self._child.parameters
        theirs = {name: value for name, value in options.items() if name not in self.own_options}
        if given is not None and "initial_states" in takes:
            theirs["initial_states"] = given
        if time_limit is not None and "time_limit" in takes:
            theirs["time_limit"] = time_limit
        return theirs


class Search:
    """What the rounds of one solve have found so far."""

    def __init__(self, problem: QuadraticProblem, max_rounds: int, deadline: Deadline) -> None:
        self.problem = problem
        self.states: list[States] = []
        self.info: dict[str, Any] = {}
        self.child_info: dict[str, Any] = {}
        self.rounds: list[Round] = []
        self.ones_of_last: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.interrupted = False
        self._samples = 0
        self._feasible = 0
        self._senseless = 0
        self._max_rounds = max_rounds
        self._deadline = deadline

    @property
    def goes_on(self) -> bool:
        """Whether another round may begin; the first always may."""
        late = len(self.rounds) >= self._max_rounds or self._deadline.passed
        return not self.rounds or not late

    def keep(self, states: States) -> None:
        """Let states that are already feasible compete."""
        self.states.append(states)

    def ask(
        self,
        child: ForeignSampler,
        bqm: dimod.BinaryQuadraticModel,
        strength: float | tuple[float, ...],
        options: dict[str, Any],
    ) -> float:
        """One round; returns the share of feasible samples before repair."""
        # The model is over the labels, in the problem's order, and binary.
        answer = child.sample(bqm, **options)
        raw = np.asarray(answer.record.sample, dtype=np.int8)
        raw = np.repeat(raw, answer.record.num_occurrences, axis=0)
        feasible = self.problem.feasible(raw)
        repaired = repair(self.problem, raw)
        best = raw[int(np.argmin(bqm.energies((raw, list(bqm.variables)))))]
        self.ones_of_last = _ones(self.problem, best)
        self.keep(repaired)
        self._samples += len(raw)
        self._feasible += int(feasible.sum())
        energy = float(self.problem.energies(repaired).min())
        self.rounds.append(Round(strength, float(feasible.mean()), energy))
        self.child_info = dict(answer.info)
        self._senseless += NOT_FINITE in self.child_info
        return float(feasible.mean())

    def solution(self, problem: QuadraticProblem) -> Solution:
        """Everything seen, best first, with what the rounds have to say."""
        feasible = self._feasible / max(1, self._samples)
        penalty = self.info | {
            "strength": self.rounds[-1].strength if self.rounds else None,
            "feasible": feasible,
            "repaired": 1.0 - feasible if self._samples else 0.0,
            "rounds": [asdict(one) for one in self.rounds],
        }
        info: dict[str, Any] = {"penalty": penalty, "child": self.child_info}
        if self.interrupted:
            info["interrupted"] = True
        if self._senseless:
            info[NOT_FINITE] = self._senseless
        return Solution.of(problem, np.concatenate(self.states), info=info)


def _ones(problem: QuadraticProblem, x: NDArray[np.int8]) -> NDArray[np.int64]:
    if problem.groups is None:
        return np.zeros(0, dtype=np.int64)
    return np.bincount(problem.groups, weights=x, minlength=problem.num_groups).astype(np.int64)

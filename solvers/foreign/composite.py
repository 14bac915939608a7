"""The base of the composites that keep counts for a child: rounds, repair, the best so far."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import dimod
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from solvers.errors import ChargeRefusedError
from solvers.foreign.border import INSTEAD, MOST_KEPT, NOT_FINITE, ForeignSampler, refuse_unknown
from solvers.foreign.strength import with_matrix
from solvers.host.clock import Deadline
from solvers.options import Count, SamplerOptions, described, read_options
from solvers.problem.problem import Floats, QuadraticProblem
from solvers.problem.quadratic import Sparse
from solvers.problem.repair import repair
from solvers.problem.solution import Solution
from solvers.sampler import States, random_states
from solvers.search.timed import EVALUATIONS_AFTER, TimedSampler, descend

# Seconds to build a model, per entry of the matrix.
_MODEL = 1e-7
_SECONDS_AFTER_INTERRUPT = 0.4
# Samples that are repaired and evaluated after the time limit, and evaluations that takes.
_MOST_AFTERWARDS, _EVALUATIONS = 4, 8.0
_SECONDS_AFTERWARDS = 0.005


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


class ChildOptions(SamplerOptions):
    """Options of a sampler that asks another one."""

    theirs: Mapping[str, Any] = Field(default={}, description="the options of the child")


class CompositeOptions(ChildOptions):
    """Options of `CountingComposite`."""

    max_rounds: Count = Field(default=8, description="calls of the child at most (default 8)")


class AskingSampler(TimedSampler):
    """A sampler of this package that has the options of a child beside its own."""

    Options = ChildOptions
    # Fields of `Options` that are offered only where the child has them, too.
    shared: ClassVar[frozenset[str]] = frozenset({"num_reads", "seed"})

    @property
    @abstractmethod
    def _of_child(self) -> Mapping[str, str]:
        """The child's options, a line of help each."""

    @property
    def options(self) -> Mapping[str, str]:
        """The sampler's own options, then the child's."""
        own = {
            name: line
            for name, line in described(self.Options).items()
            if name != "theirs" and (name not in self.shared or name in self._of_child)
        }
        return dict(self._of_child) | own

    def _asked(self, options: Mapping[str, Any]) -> Any:
        refuse_unknown(type(self).__name__, options, self.options)
        own = self.Options.model_fields
        theirs = {n: v for n, v in options.items() if n not in own and v is not None}
        mine = {name: value for name, value in options.items() if name in own}
        asked = read_options(type(self).__name__, self.Options, mine)
        return asked.model_copy(update={"theirs": theirs})


class CountingComposite(AskingSampler, dimod.ComposedSampler):
    """A composite with one child: rounds, repair, and the best of all samples.

    Args:
        child: any object with ``sample(bqm, **options) -> dimod.SampleSet``.
    """

    Options = CompositeOptions

    def __init__(self, child: Any) -> None:
        self._child = child if isinstance(child, ForeignSampler) else ForeignSampler(child)

    @property
    def children(self) -> list[dimod.Sampler]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The one child."""
        return [self._child]

    @property
    def _of_child(self) -> Mapping[str, str]:
        return dict.fromkeys(self._child.parameters, f"as in {self._child.name}")

    @property
    def properties(self) -> dict[str, Any]:
        """Capabilities of the composite; the child's under ``child``."""
        return {**super().properties, "child": self._child.properties}

    def _search(
        self,
        problem: QuadraticProblem,
        asked: CompositeOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        """Rounds; a budget that is used up between them ends the search with the best so far.

        ``info["penalty"]`` then has ``stopped``.

        Raises:
            SamplerFailedError: the child raised, or its answer is not one.
            ProblemTooLargeError: the model that the child needs does not fit into memory.
        """
        search = Search(with_matrix(problem), self._child, asked, given, deadline)
        try:
            self._rounds(search, asked)
        except ChargeRefusedError as refused:
            if not search.rounds:
                raise
            search.info["stopped"] = str(refused)
        else:
            search.use_time()
        return search.solution()

    @abstractmethod
    def _rounds(self, search: Search, asked: Any) -> None:
        """Call the child, through ``search``, until satisfied."""


class Search:
    """The rounds of one solve, and the best samples so far.

    Args:
        problem: with counts or without.
        child: the sampler to ask.
        asked: options of the composite and of the child.
        given: initial states; the best may be among them.
        deadline: of the whole search.
    """

    def __init__(
        self,
        problem: QuadraticProblem,
        child: ForeignSampler,
        asked: CompositeOptions,
        given: States | None,
        deadline: Deadline,
    ) -> None:
        self.problem = problem
        self.info: dict[str, Any] = {}
        self.rounds: list[Round] = []
        self.ones_of_last: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._child, self._asked = child, asked
        self._options = options_for(child, asked, given)
        self._deadline = deadline
        self._states: list[States] = []
        self._energies: list[Floats] = []
        self._child_info: dict[str, Any] = {}
        self._instead = ""
        self._samples = 0
        self._feasible = 0
        self._senseless = 0
        self._learned: dict[str, Any] = {}
        # With a time limit, the base has measured the time of an evaluation.
        self._seconds = max(1e-5, deadline.kept_back / EVALUATIONS_AFTER)
        deadline.kept_back = max(deadline.kept_back, _EVALUATIONS * self._seconds)
        if given is not None:
            self._keep(given)

    @property
    def goes_on(self) -> bool:
        """True while rounds and time are left."""
        return len(self.rounds) < self._asked.max_rounds and not self._deadline.passed

    def ask(
        self,
        model: Callable[[], dimod.BinaryQuadraticModel],
        strength: float | tuple[float, ...],
        pairs: float = 0.0,
    ) -> float | None:
        """One round; returns the share of feasible samples before repair, None without any.

        Args:
            model: builds the child's model: binary, over the labels, in the problem's order.
            strength: for the record.
            pairs: couplings that the model has beside those of the problem, at most.
        """
        quadratic, size = self.problem.quadratic, float(self.problem.num_variables)
        entries = quadratic.matrix.nnz if isinstance(quadratic, Sparse) else size * size
        limited = self._deadline.time_limit is not None
        if limited and _MODEL * (entries + pairs) > self._deadline.remaining:
            self._instead = "the time limit is shorter than making the sampler's model takes"
            return None
        self._model, self._strength = model(), strength
        return self._round(self._options, endless=False)

    def use_time(self) -> None:
        """With a time limit and no number of reads, sample the last model until the limit."""
        asked, options = self._asked, self._options
        if asked.time_limit is None or asked.num_reads is not None or not self.rounds:
            return
        if "seed" in options:
            state = np.random.SeedSequence([options["seed"], len(self.rounds)]).generate_state(1)
            options = options | {"seed": int(state[0])}
        if self._child.repeats and not self._deadline.passed:
            self._round(self._learned | options, endless=True)

    def _round(self, options: dict[str, Any], *, endless: bool) -> float | None:
        answer = self._child.attempt(self._model, options, self._deadline, endless=endless)
        if answer is None:
            self._instead = f"{self._child.name} found nothing in time"
            return None
        raw = np.asarray(answer.record.sample, dtype=np.int8)
        raw = np.repeat(raw, answer.record.num_occurrences, axis=0)
        if self._deadline.time_limit is not None:
            # Repair and evaluation take time; only the best samples get it.
            most = _MOST_AFTERWARDS + int(_SECONDS_AFTERWARDS / self._seconds)
            most = most if self._deadline.passed else max(most, MOST_KEPT)
            order = np.argsort(np.repeat(answer.record.energy, answer.record.num_occurrences))
            raw = raw[order[:most]]
        feasible = self.problem.feasible(raw)
        repaired = repair(self.problem, raw)
        best = answer.record.sample[int(np.argmin(answer.record.energy))]
        self.ones_of_last = _ones(self.problem, best)
        energy = self._keep(repaired)
        self._samples += len(raw)
        self._feasible += int(feasible.sum())
        self.rounds.append(Round(self._strength, float(feasible.mean()), energy))
        self._child_info = dict(answer.info)
        self._learned = self._child.learned(answer, options)
        self._senseless += NOT_FINITE in answer.info
        return float(feasible.mean())

    def _keep(self, states: States) -> float:
        energies = self.problem.energies(states)
        self._states.append(states)
        self._energies.append(energies)
        return float(energies.min())

    def solution(self) -> Solution:
        """The solution of all samples, best first; ``info`` has the rounds."""
        feasible = self._feasible / max(1, self._samples)
        penalty = self.info | {
            "strength": self.rounds[-1].strength if self.rounds else None,
            "feasible": feasible,
            "repaired": 1.0 - feasible if self._samples else 0.0,
            "rounds": [asdict(one) for one in self.rounds],
        }
        info: dict[str, Any] = {"penalty": penalty, "child": self._child_info}
        if self._senseless:
            info[NOT_FINITE] = self._senseless
        if not self._states:
            info[INSTEAD] = f"swap descent: {self._instead or 'nothing was asked'}"
            self._keep(last_resort(self.problem, self._asked.seed, self._deadline))
        states, energies = np.concatenate(self._states), np.concatenate(self._energies)
        order = np.argsort(energies, kind="stable")
        return Solution(states[order].astype(np.int8), energies[order], info=info)


def last_resort(problem: QuadraticProblem, seed: int | None, deadline: Deadline) -> States:
    """One state by swap descent, shape (1, n), where the child has found none.

    After a time limit it is random: the base already has a descended one.
    """
    state = random_states(problem, 1, np.random.default_rng(seed))
    if deadline.time_limit is not None and not deadline.interrupted:
        return state
    return descend(problem, state, deadline=Deadline(_SECONDS_AFTER_INTERRUPT))


def options_for(child: ForeignSampler, asked: ChildOptions, given: States | None) -> dict[str, Any]:
    """The options of a call of the child: its own, and the shared ones that it has."""
    takes, options = child.theirs, dict(asked.theirs)
    for name, value in (("num_reads", asked.num_reads), ("seed", asked.seed)):
        if value is not None and name in takes:
            options[name] = value
    if given is not None and "initial_states" in takes:
        options["initial_states"] = given
    if asked.time_limit is not None and "time_limit" in takes:
        options["time_limit"] = asked.time_limit
    return options


def _ones(problem: QuadraticProblem, x: NDArray[np.int8]) -> NDArray[np.int64]:
    if problem.groups is None:
        return np.zeros(0, dtype=np.int64)
    return np.bincount(problem.groups, weights=x, minlength=problem.num_groups).astype(np.int64)

"""Exact samplers: branch and bound, and enumeration."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from solvers.convex.bounds import (
    Relaxation,
    diagonal_metric,
    newton_seconds,
    pass_seconds,
    relax_convex,
    rounding_slack,
)
from solvers.convex.branch_kernels import bound_node, enumerate_states
from solvers.convex.convexify import Convex, convexify
from solvers.convex.presolve import Presolved, extreme, presolved, times_power
from solvers.convex.relax import FEWEST_PASSES, RelaxOptions, relax_and_round
from solvers.errors import ProblemTooLargeError
from solvers.host.clock import Deadline
from solvers.options import Count, SamplerOptions, Share, TimedOptions
from solvers.problem.gap import energy_step, mean_energy, raised, rounding
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Floats
from solvers.problem.solution import Solution
from solvers.sampler import States, random_states
from solvers.search.timed import TimedSampler, descend

_MOST_ENUMERATED = 24
_LOW_BITS = 12
# Blocks of 2^_LOW_BITS states between two looks at the clock.
_BLOCKS_PER_LOOK = 32
# Nodes in all for each node of a dive.
_NODES_PER_DIVE = 4
# Open nodes beyond this many bytes are explored depth first, which opens few new ones.
_MEMORY = 1 << 30
_BYTES_PER_NODE = 450
# With more undecided variables there is no branching: a node takes seconds and decides nothing.
_LARGEST_TREE = 1200
# Limits of a node: Newton steps, and their seconds.
_MOST_STEPS = 200
_SECONDS_PER_NODE = 0.5
# Where all energies are multiples of a step: a better state is lower by more than this share.
_PART_OF_STEP = 0.9375

#: Bound, serial number, decided variables, the parent's fractional point.
_Node = tuple[float, int, NDArray[np.int8], NDArray[np.floating]]


class ExactOptions(SamplerOptions):
    """Options of `Exact`."""

    num_reads: Count | None = Field(
        default=None, description="starts of the search for the first state (default 4)"
    )
    max_nodes: Count | None = Field(
        default=None, description="nodes after which to stop (default: none)"
    )
    gap: Share = Field(
        default=0.0,
        description="gap at which to stop, relative (solvers.problem.gap; default 0: the optimum)",
    )


class Exact(TimedSampler):
    """Branch and bound on the convex relaxation, with reduced-cost fixing at every node.

    What is decided without a search is taken out first (`solvers.convex.presolve`). `Relax` gives
    the first state. Nodes are explored best bound first, so that the lower bound rises until it
    meets the best energy (``info["proved"]``) or a limit is reached. A relaxation starts from its
    parent's point; the branching variable is the one both of whose values cost most by the
    curvature of the face. Convex problems only prune well: others are made convex by a diagonal
    shift (``info["convexified"]``). More than 1200 undecided variables are not branched on: the
    answer is then that of `Relax`, with its bound.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.ones((3, 3)), counts=2)
        >>> solution = Exact().sample_problem(problem)
        >>> solution.sample.tolist(), solution.proved
        ([0, 1, 1], True)
    """

    Options = ExactOptions

    bounds = True

    def _search(
        self,
        problem: QuadraticProblem,
        asked: ExactOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        reads = RelaxOptions(num_reads=asked.num_reads or 4, seed=asked.seed)
        if deadline.remaining < FEWEST_PASSES * pass_seconds(problem.quadratic):
            return relax_and_round(problem, reads, given, deadline)
        power = extreme(problem)
        if power:
            found = self._search(times_power(problem, -power), asked, given, deadline)
            bound = float(np.ldexp(found.lower_bound, power))
            return Solution.of(problem, found.samples, lower_bound=bound, info=found.info)
        left = presolved(problem, deadline)
        # As in `TimedSampler`: the offset of decided variables must not add rounding to the search.
        decided = left.problem.offset
        part = left.problem.with_linear(left.problem.linear, 0.0)
        goal = _Goal.of(problem, decided, asked.gap)
        first = relax_and_round(part, reads, left.restrict(given), deadline)
        search = _Search(part, first, goal)
        search.start(deadline)
        if search.undecided > _LARGEST_TREE:
            search.sample(asked, deadline)
        else:
            search.run(deadline, asked.max_nodes)
        return search.solution(problem, left, len(first.samples))


@dataclass(frozen=True)
class _Goal:
    """The energy at which a search may stop, given the best one found.

    Attributes:
        mean: mean energy of random states, without ``decided``.
        rounding: the largest difference that rounding explains.
        step: divides all energies, ``decided`` included; 0 where none is known.
        decided: energy of the variables decided before the search.
        gap: the relative gap that is asked.
    """

    mean: float
    rounding: float
    step: float
    decided: float
    gap: float

    @classmethod
    def of(cls, problem: QuadraticProblem, decided: float, gap: float) -> _Goal:
        """The goal for the whole ``problem``; ``decided`` is the offset of what is left of it."""
        mean = mean_energy(problem) - decided
        return cls(mean, rounding(problem), energy_step(problem), decided, gap)

    def target(self, energy: float, slack: float) -> float:
        """The energy from which on states need no search.

        Args:
            energy: the best found.
            slack: rounding error of bounds.
        """
        # (E - B) / (M - B) = gap, solved for B.
        wanted = energy - max(0.0, self.mean - energy) * self.gap / (1.0 - self.gap)
        if self.step > 0.0:
            return min(wanted, energy - _PART_OF_STEP * self.step)
        return min(wanted, energy - max(0.5 * self.rounding, 2.0 * slack))


@dataclass
class _Search:
    """The best state so far and the open nodes."""

    problem: QuadraticProblem
    first: Solution
    goal: _Goal
    nodes: int = 0
    undecided: int = 0
    open: list[_Node] = field(default_factory=list[_Node])
    improved: list[NDArray[np.int8]] = field(default_factory=list[NDArray[np.int8]])

    def __post_init__(self) -> None:
        self.energy = self.first.energy
        self.bound = self.first.lower_bound
        self.serial = itertools.count()
        self.core: _Core | None = None

    @property
    def target(self) -> float:
        """The energy from which on states need no search."""
        return self.goal.target(self.energy, 0.0 if self.core is None else self.core.slack)

    def start(self, deadline: Deadline) -> None:
        """Relax the whole problem accurately and cut it down to what is not decided."""
        if self.problem.num_variables == 0:
            self.bound = self.energy
        if self.bound >= self.target or deadline.passed:
            return
        convex = convexify(self.problem, deadline)
        relaxation = relax_convex(convex, tolerance=1e-6, deadline=deadline)
        self.bound = max(self.bound, relaxation.lower_bound)
        keep = relaxation.tangent.open_below(self.target)
        self.undecided = keep.size
        if keep.size > _LARGEST_TREE:
            return
        self.core = _Core.of(relaxation, keep)
        state = np.full(self.core.keep.size, -1, np.int8)
        self.open = [self._node(self.bound, state, relaxation.x[self.core.keep])]

    def sample(self, asked: ExactOptions, deadline: Deadline) -> None:
        """Search for better states by annealing in the time that is left."""
        if asked.time_limit is None or asked.num_reads is not None or deadline.passed:
            return
        seed = None if asked.seed is None else asked.seed + 1
        reads = RelaxOptions(seed=seed, time_limit=asked.time_limit)
        found = relax_and_round(self.problem, reads, self.first.samples[:1], deadline)
        self.bound = max(self.bound, found.lower_bound)
        if found.energy < self.energy:
            self.energy = found.energy
            self.improved.append(found.sample)

    def run(self, deadline: Deadline, max_nodes: int | None) -> None:
        """Explore open nodes until none can hold a better state.

        Best bound first; now and then a dive from there, to the nearer value, until nothing is
        open: that finds good states, which cut off many nodes. Where memory is short
        the order is depth first.
        """
        dived = 0
        while self.open and self.open[0][0] < self.target:
            full = len(self.open) * (_BYTES_PER_NODE + 5 * self.open[0][2].size) > _MEMORY
            dive = full or self.nodes >= _NODES_PER_DIVE * dived
            before = self.nodes
            below = [heapq.heappop(self.open)]
            while below:
                if deadline.passed or self.nodes == max_nodes:
                    break
                children = self._explore(below.pop(), deadline)
                if not dive:
                    children, rest = [], children
                elif full:
                    rest = []
                else:
                    children, rest = children[-1:], children[:-1]
                below += children
                for node in rest:
                    heapq.heappush(self.open, node)
            for node in below:
                heapq.heappush(self.open, node)
            if below:
                break
            dived += self.nodes - before if dive else 0
        if self.open:
            self.bound = max(self.bound, self.open[0][0])
        if self.core is not None and (not self.open or self.bound >= self.target):
            self.bound = max(self.bound, self.target)

    def _node(self, bound: float, state: NDArray[np.int8], x: NDArray[np.floating]) -> _Node:
        return bound, next(self.serial), state, x

    def _explore(self, node: _Node, deadline: Deadline) -> list[_Node]:
        """Bound one node; its children, the nearer one last."""
        assert self.core is not None
        bound, _, state, x = node
        self.nodes += 1
        core = self.core
        x = x.astype(np.float64)
        sample = np.empty(state.size, np.int8)
        seconds = min(_SECONDS_PER_NODE, deadline.remaining)
        steps = min(_MOST_STEPS, int(seconds / newton_seconds(int((state < 0).sum()))))
        found, energy, branch = bound_node(
            core.matrix,
            core.convex.linear,
            core.convex.starts,
            core.convex.counts,
            core.metric,
            self.target - core.convex.offset,
            core.slack,
            0.05 * (self.target - bound),
            max(1, steps),
            state,
            x,
            sample,
        )
        bound = max(bound, found + core.convex.offset)
        if energy + core.convex.offset < self.energy:
            self._improve(sample)
        if branch < 0 or bound >= self.target:
            return []
        near, far = state, state.copy()
        near[branch] = x[branch] > 0.5
        far[branch] = 1 - near[branch]
        single = x.astype(np.float32)
        return [self._node(bound, far, single), self._node(bound, near, single)]

    def _improve(self, sample: NDArray[np.int8]) -> None:
        assert self.core is not None
        whole = descend(self.problem, self.core.lift(sample)[None])[0]
        energy = self.problem.energy(whole)
        if energy < self.energy:
            self.energy = energy
            self.improved.append(whole)

    def solution(self, problem: QuadraticProblem, left: Presolved, num_samples: int) -> Solution:
        """The best states of the whole ``problem`` with the bound that holds now."""
        states = np.concatenate([self.first.samples, *(s[None] for s in self.improved)])
        keep = np.argsort(self.problem.energies(states), kind="stable")[:num_samples]
        states = left.lift(states[keep])
        energies = problem.energies(states)
        bound = raised(self.goal.decided + self.bound - left.slack, self.goal.step)
        info = {
            "nodes": self.nodes,
            "open": len(self.open),
            "decided": problem.num_variables - self.problem.num_variables,
            "core": self.undecided,
            "root_bound": self.goal.decided + self.first.lower_bound - left.slack,
            "convexified": self.first.info["convexified"],
        }
        return Solution.of(
            problem,
            states,
            energies=energies,
            lower_bound=min(bound, float(energies.min())),
            info=info,
        )


@dataclass(frozen=True, eq=False)
class _Core:
    """The part of the problem that the root's reduced costs leave undecided.

    Attributes:
        whole: the whole convex problem.
        convex: the undecided part.
        keep: its positions in ``whole``.
        vertex: values of the others.
        matrix: Q of the part.
        metric: as in `solvers.convex.bounds`.
        slack: rounding error of a bound.
    """

    whole: Convex
    convex: Convex
    keep: NDArray[np.int64]
    vertex: NDArray[np.int8]
    matrix: Floats
    metric: Floats
    slack: float

    @classmethod
    def of(cls, relaxation: Relaxation, keep: NDArray[np.int64]) -> _Core:
        """The part ``keep``; the others are as in the state that minimises the tangent."""
        whole, tangent = relaxation.convex, relaxation.tangent
        fixed = tangent.vertex.astype(np.float64)
        convex = whole.restrict(keep, fixed, whole.quadratic.product(fixed))
        matrix = np.ascontiguousarray(convex.quadratic.dense())
        # The fixed part adds rounding, too.
        slack = rounding_slack(whole, np.ones(whole.size))
        return cls(whole, convex, keep, tangent.vertex, matrix, diagonal_metric(convex), slack)

    def lift(self, sample: NDArray[np.int8]) -> NDArray[np.int8]:
        """A state of the part as one of the original problem."""
        state = self.vertex.copy()
        state[self.keep] = sample
        return self.whole.unsorted(state)


class Enumeration(TimedSampler):
    """Every state, for problems of at most 24 variables: the ground truth of the tests.

    Example:
        >>> problem = QuadraticProblem([3.0, -1.0, -2.0], np.zeros((3, 3)), counts=2)
        >>> found = Enumeration().sample_problem(problem)
        >>> found.sample.tolist(), found.proved
        ([0, 1, 1], True)
    """

    Options = TimedOptions

    bounds = True

    @property
    def repeatable(self) -> bool:
        """Nothing in it is random."""
        return True

    def _search(
        self,
        problem: QuadraticProblem,
        asked: TimedOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        n = problem.num_variables
        if n > _MOST_ENUMERATED:
            raise ProblemTooLargeError(
                f"{n} variables have 2^{n} states; enumeration ends at {_MOST_ENUMERATED}: "
                "use the sampler 'exact'"
            )
        matrix = np.ascontiguousarray(problem.quadratic.dense())
        best = random_states(problem, 1, np.random.default_rng(0))[0]
        none = np.zeros(0, np.int64)
        low_bits = min(n, _LOW_BITS)
        lowest, blocks, first = np.inf, 1 << (n - low_bits), 0
        while first < blocks and not deadline.passed:
            last = min(first + _BLOCKS_PER_LOOK, blocks)
            lowest = enumerate_states(
                matrix,
                0.5 * problem.quadratic.diagonal(),
                problem.linear,
                none if problem.groups is None else problem.groups,
                none if problem.counts is None else problem.counts,
                low_bits,
                first,
                last,
                lowest,
                best,
            )
            first = last
        bound = -np.inf
        if first == blocks:
            # Sums in another order may be a little less.
            bound = raised(problem.energy(best) - 0.25 * rounding(problem), energy_step(problem))
        return Solution.of(problem, best, lower_bound=bound)

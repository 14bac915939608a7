"""Samplers that prove what they answer: branch and bound, and enumeration."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.bounds import Relaxation, diagonal_metric, relax_convex, rounding_slack
from solvers.branch_kernels import bound_node, enumerate_states
from solvers.clock import Deadline
from solvers.convexify import Convex, convexify
from solvers.descent import descend
from solvers.errors import InvalidOptionError, ProblemTooLargeError
from solvers.problem import QuadraticProblem
from solvers.quadratic import Floats
from solvers.relax import Relax
from solvers.sampler import CountingSampler, positive_int
from solvers.solution import Solution

_MOST_ENUMERATED = 24
_LOW_BITS = 12
# Nodes explored best first for each one of a dive.
_NODES_PER_DIVE = 4
# Open nodes beyond this many bytes are explored depth first, which opens few new ones.
_MEMORY = 1 << 30

#: Bound, serial number, what is decided, where the relaxation of the parent was.
_Node = tuple[float, int, NDArray[np.int8], NDArray[np.floating]]


class Exact(CountingSampler):
    """Branch and bound on the convex relaxation, with reduced-cost fixing at every node.

    `Relax` gives the first state. Nodes are explored best bound first, so that the lower bound
    rises until it meets the best energy (``info["proved"]``) or a limit is reached. A relaxation
    starts from its parent's point; the branching variable is the one both of whose values cost
    most by the curvature of the face. Convex problems only prune well: others are made convex by
    a diagonal shift (``info["convexified"]``).

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.ones((3, 3)), counts=2)
        >>> solution = Exact().sample_problem(problem)
        >>> solution.sample.tolist(), solution.info["proved"]
        ([0, 1, 1], True)
    """

    options: ClassVar = {
        "num_reads": "starts of the search for the first state (default 4)",
        "seed": "seed of that search",
        "initial_states": "states that it improves too, shape (k, n)",
        "time_limit": "seconds after which the best state and bound so far are returned",
        "max_nodes": "nodes after which to stop (default: none)",
        "gap": "relative gap that counts as proved (default 1e-6)",
    }

    @property
    def properties(self) -> dict[str, Any]:
        return {**super().properties, "bound": True}

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        num_reads: int = 4,
        seed: int | None = None,
        initial_states: ArrayLike | None = None,
        time_limit: float | None = None,
        max_nodes: int | None = None,
        gap: float = 1e-6,
    ) -> Solution:
        """Solve to the gap asked, or until a limit or an interrupt.

        Raises:
            InvalidOptionError: an option's value makes no sense; the message says which and why.
        """
        deadline = Deadline(time_limit)
        most = None if max_nodes is None else positive_int("max_nodes", max_nodes)
        if not gap >= 0:
            raise InvalidOptionError(f"gap must be at least 0, not {gap!r}")
        first = Relax().sample_problem(
            problem,
            num_reads=num_reads,
            seed=seed,
            initial_states=initial_states,
            time_limit=deadline.remaining if time_limit is not None else None,
        )
        search = _Search(problem, first, gap)
        try:
            search.start(deadline)
            search.run(deadline, most)
        except KeyboardInterrupt:
            search.interrupted = True
        return search.solution()


@dataclass
class _Search:
    """The best state so far and what is still open."""

    problem: QuadraticProblem
    first: Solution
    gap: float
    nodes: int = 0
    interrupted: bool = False
    open: list[_Node] = field(default_factory=list)
    improved: list[NDArray[np.int8]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.energy = self.first.energy
        self.bound = self.first.lower_bound
        self.serial = itertools.count()
        self.core: _Core | None = None

    @property
    def target(self) -> float:
        """States of this energy or more need not be looked for."""
        return self.energy - max(self.gap * abs(self.energy), 1e-300)

    def start(self, deadline: Deadline) -> None:
        """Relax the whole problem accurately and cut it down to what is not decided."""
        if self.problem.num_variables == 0 or self.bound >= self.target:
            return
        relaxation = relax_convex(convexify(self.problem), tolerance=1e-6, deadline=deadline)
        self.bound = max(self.bound, relaxation.lower_bound)
        self.core = _Core.of(relaxation, self.target)
        state = np.full(self.core.keep.size, -1, np.int8)
        self.open = [self._node(self.bound, state, relaxation.x[self.core.keep])]

    def run(self, deadline: Deadline, max_nodes: int | None) -> None:
        """Explore open nodes until none can hold a better state.

        Best bound first, but every so often down from there to the nearer value until nothing is
        left: that finds good states, which rule out more than bounds do.
        """
        dived = 0
        while self.open and self.open[0][0] < self.target:
            dive = self.nodes >= _NODES_PER_DIVE * dived
            before = self.nodes
            node: _Node | None = self._pop()
            while node is not None:
                if deadline.passed or self.nodes == max_nodes:
                    heapq.heappush(self.open, node)
                    break
                following = self._explore(node)
                if following is not None and not dive:
                    heapq.heappush(self.open, following)
                node = following if dive else None
            else:
                dived += self.nodes - before if dive else 0
                continue
            break
        if self.open:
            self.bound = max(self.bound, min(self.open)[0])
        if not self.open or self.bound >= self.target:
            self.bound = max(self.bound, self.target)

    def _node(self, bound: float, state: NDArray[np.int8], x: NDArray[np.floating]) -> _Node:
        return bound, next(self.serial), state, x

    def _pop(self) -> _Node:
        size = self.problem.num_variables
        if len(self.open) * 5 * size > _MEMORY:
            newest = max(range(len(self.open)), key=lambda i: self.open[i][1])
            self.open[newest], self.open[-1] = self.open[-1], self.open[newest]
            node = self.open.pop()
            heapq.heapify(self.open)
            return node
        return heapq.heappop(self.open)

    def _explore(self, node: _Node) -> _Node | None:
        """Bound one node; its farther child is left open, the nearer one returned."""
        assert self.core is not None
        bound, _, state, x = node
        self.nodes += 1
        core = self.core
        x = x.astype(np.float64)
        sample = np.empty(state.size, np.int8)
        found, energy, branch = bound_node(
            core.matrix,
            core.convex.linear,
            core.convex.starts,
            core.convex.counts,
            core.metric,
            self.target - core.convex.offset,
            core.slack,
            0.05 * (self.target - bound),
            state,
            x,
            sample,
        )
        bound = max(bound, found + core.convex.offset)
        if energy + core.convex.offset < self.energy:
            self._improve(sample)
        if branch < 0 or bound >= self.target:
            return None
        near, far = state, state.copy()
        near[branch] = x[branch] > 0.5
        far[branch] = 1 - near[branch]
        single = x.astype(np.float32)
        heapq.heappush(self.open, self._node(bound, far, single))
        return self._node(bound, near, single)

    def _improve(self, sample: NDArray[np.int8]) -> None:
        assert self.core is not None
        whole = descend(self.problem, self.core.lift(sample)[None])[0]
        energy = self.problem.energy(whole)
        if energy < self.energy:
            self.energy = energy
            self.improved.append(whole)

    def solution(self) -> Solution:
        """The best states with the bound that holds now."""
        states = np.concatenate([self.first.samples, *(s[None] for s in self.improved)])
        keep = np.argsort(self.problem.energies(states), kind="stable")[: len(self.first.samples)]
        bound = min(self.bound, self.energy)
        info = {
            "proved": bool(bound >= self.target),
            "nodes": self.nodes,
            "open": len(self.open),
            "core": 0 if self.core is None else int(self.core.keep.size),
            "root_bound": self.first.lower_bound,
            "convexified": self.first.info["convexified"],
        }
        if self.interrupted:
            info["interrupted"] = True
        return Solution.of(self.problem, states[keep], lower_bound=bound, info=info)


@dataclass(frozen=True, eq=False)
class _Core:
    """What the root's reduced costs leave undecided, in full.

    Attributes:
        whole: the whole convex problem.
        convex: the undecided part.
        keep: its positions in ``whole``.
        vertex: values of the others.
        matrix: Q of the part.
        metric: as in `solvers.bounds`.
        slack: what rounding errors can add to a bound.
    """

    whole: Convex
    convex: Convex
    keep: NDArray[np.int64]
    vertex: NDArray[np.int8]
    matrix: Floats
    metric: Floats
    slack: float

    @classmethod
    def of(cls, relaxation: Relaxation, target: float) -> _Core:
        """Fix what no state below ``target`` can differ in."""
        whole, tangent = relaxation.convex, relaxation.tangent
        keep = np.flatnonzero(tangent.bound + tangent.reduced_costs < target)
        fixed = tangent.vertex.astype(np.float64)
        convex = whole.restrict(keep, fixed, whole.quadratic.product(fixed))
        matrix = np.ascontiguousarray(convex.quadratic.dense())
        slack = rounding_slack(replace(convex, offset=whole.offset), np.ones(keep.size))
        return cls(whole, convex, keep, tangent.vertex, matrix, diagonal_metric(convex), slack)

    def lift(self, sample: NDArray[np.int8]) -> NDArray[np.int8]:
        """A state of the part as one of the original problem."""
        state = self.vertex.copy()
        state[self.keep] = sample
        return self.whole.unsorted(state)


class Enumeration(CountingSampler):
    """Every state, for problems of at most 24 variables: the ground truth of the tests."""

    options: ClassVar = {}

    @property
    def properties(self) -> dict[str, Any]:
        return {**super().properties, "bound": True}

    def sample_problem(self, problem: QuadraticProblem) -> Solution:
        """The optimum.

        Raises:
            ProblemTooLargeError: more than 24 variables.
        """
        n = problem.num_variables
        if n > _MOST_ENUMERATED:
            raise ProblemTooLargeError(
                f"{n} variables have 2^{n} states; enumeration ends at {_MOST_ENUMERATED}: "
                "use the sampler 'exact'"
            )
        matrix = np.ascontiguousarray(problem.quadratic.dense())
        best = np.zeros(n, np.int8)
        none = np.zeros(0, np.int64)
        enumerate_states(
            matrix,
            0.5 * problem.quadratic.diagonal(),
            problem.linear,
            none if problem.groups is None else problem.groups,
            none if problem.counts is None else problem.counts,
            min(n, _LOW_BITS),
            best,
        )
        solution = Solution.of(problem, best, info={"proved": True})
        return replace(solution, lower_bound=solution.energy)

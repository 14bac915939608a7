"""Roof duality: a lower bound for any binary quadratic problem, and variables it decides.

Computed by ``dwave.preprocessing`` as a maximum flow (Hammer, Hansen and Simeone, Math.
Programming 28, 1984; Boros, Hammer and Tavares, RUTCOR Research Report 10-2006), in a process of
its own. It needs no convexity; for convex pruning blocks the relaxation's bound is far better.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dimod
import numpy as np
from scipy import sparse

from solvers.ask.counting import counting
from solvers.convex.presolve import sign_bound
from solvers.errors import MissingPackageError
from solvers.foreign.border import refuse_unknown
from solvers.foreign.strength import marginal_costs
from solvers.host.clock import Deadline, running
from solvers.host.machine import require_memory
from solvers.options import TimedOptions, read_options
from solvers.problem.gap import rounding
from solvers.problem.parts import restricted
from solvers.problem.problem import QuadraticProblem, States
from solvers.problem.quadratic import Floats, Sparse
from solvers.problem.solution import Solution
from solvers.sampler import CountingSampler, given_states

_PROGRAM = Path(__file__).with_name("roof_process.py")
_SECONDS_PER_LOOK = 0.02


@dataclass(frozen=True)
class RoofDual:
    """The roof dual of a problem: a lower bound, and variables that it fixes.

    Attributes:
        lower_bound: no (feasible) state has a lower energy.
        fixed: index -> value in every optimal state; empty for a problem with counts, where
            persistency does not hold.
        failed: reason why there is no flow; the bound is then that of the signs. "" where there
            is one.
    """

    lower_bound: float
    fixed: Mapping[int, int] = field(default_factory=dict[int, int])
    failed: str = ""


def roof_dual(problem: QuadraticProblem, deadline: Deadline | None = None) -> RoofDual:
    """The roof dual of ``problem``.

    Variables are fixed only where a second flow confirms it: no state gets worse when they
    are given their values. With counts the bound is the better of two Lagrangians: without
    multipliers, and with the marginal costs of a greedy state as multipliers.

    Args:
        problem: with or without counts.
        deadline: time limit; a flow that takes longer is stopped.

    Raises:
        MissingPackageError: ``dwave-preprocessing`` is not installed.
        ProblemTooLargeError: the flow network does not fit into memory.

    Example:
        >>> problem = QuadraticProblem([-3.0, 1.0], [[0.0, 1.0], [1.0, 0.0]])
        >>> round(roof_dual(problem).lower_bound, 6)
        -3.0
    """
    deadline = deadline or Deadline()
    if find_spec("dwave.preprocessing") is None:
        raise MissingPackageError(
            "roof duality needs dwave-preprocessing: pip install dwave-preprocessing"
        )
    model = _Model.of(problem)
    if problem.groups is None or problem.counts is None:
        dual = _flow(model, deadline)
        if dual.fixed and not _borne_out(model, dual.fixed, deadline):
            dual = replace(dual, fixed={})
    else:
        multipliers = marginal_costs(problem)
        moved = replace(model, linear=model.linear - multipliers[problem.groups])
        constant = float(multipliers @ problem.counts)
        plain, other = _flow(model, deadline), _flow(moved, deadline)
        error = 4.0 * float(np.finfo(np.float64).eps) * float(np.abs(multipliers) @ problem.counts)
        bound = max(plain.lower_bound, other.lower_bound + constant - error)
        dual = RoofDual(bound, failed=plain.failed or other.failed)
    bound = max(dual.lower_bound, sign_bound(problem))
    return replace(dual, lower_bound=problem.offset + bound)


@dataclass(frozen=True)
class _Model:
    """A BINARY model without an offset; ``row`` < ``column``."""

    linear: Floats
    row: np.ndarray
    column: np.ndarray
    coupling: Floats

    @classmethod
    def of(cls, problem: QuadraticProblem) -> _Model:
        quadratic = problem.quadratic
        n = problem.num_variables
        entries = float(quadratic.matrix.nnz if isinstance(quadratic, Sparse) else n * n)
        require_memory(150.0 * entries, f"roof duality on {n} variables", "use decompose")
        linear = problem.linear + 0.5 * quadratic.diagonal()
        matrix = quadratic.matrix if isinstance(quadratic, Sparse) else quadratic.dense()
        upper: Any = sparse.coo_array(sparse.triu(sparse.coo_array(matrix), k=1))
        return cls(linear, upper.row, upper.col, upper.data)

    @property
    def error(self) -> float:
        """The rounding error of sums of coefficients; the flow itself rounds them to 61 bits."""
        total = float(np.abs(self.linear).sum() + np.abs(self.coupling).sum())
        return (16.0 + self.linear.size) * float(np.finfo(np.float64).eps) * total


def _flow(model: _Model, deadline: Deadline) -> RoofDual:
    """Bound and strict persistencies; ``failed`` has the reason where the process failed."""
    if not model.linear.size:
        return RoofDual(0.0)
    if deadline.passed:
        return RoofDual(-math.inf, failed="no time was left for it")
    sent = io.BytesIO()
    np.savez(sent, **vars(model))
    # -P: modules in the folder of `solvers` must not shadow others.
    command = [sys.executable, "-P", str(_PROGRAM)]
    # A session of its own, so that Ctrl-C reaches only this process.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        given: bytes | None = sent.getvalue()
        try:
            while True:
                try:
                    told, _ = process.communicate(given, timeout=_SECONDS_PER_LOOK)
                    break
                except subprocess.TimeoutExpired:
                    # The next call, without input, sends the rest.
                    given = None
                    if deadline.passed:
                        return RoofDual(-math.inf, failed="it did not end in time")
        finally:
            process.kill()
    if process.returncode:
        return RoofDual(-math.inf, failed=f"its process ended with {process.returncode}")
    found = json.loads(told)
    bound = float(found["bound"]) - model.error
    if not math.isfinite(bound):
        return RoofDual(-math.inf, failed="its bound is not finite")
    return RoofDual(bound, {int(i): value for i, value in found["fixed"].items()})


def _borne_out(model: _Model, fixed: Mapping[int, int], deadline: Deadline) -> bool:
    """True if another flow proves that fixing ``fixed`` makes no state worse.

    With z = 1 where a fixed variable does not have its value, the energy less that with the
    values is a quadratic form of z and the others, each of its terms with a factor z. Its roof
    dual must be 0.
    """
    n = model.linear.size
    value = np.zeros(n)
    inside = np.zeros(n, bool)
    inside[list(fixed)] = True
    value[list(fixed)] = list(fixed.values())
    # x_i = value_i + sign_i z_i of the fixed ones.
    sign = np.where(inside, 1.0 - 2.0 * value, 0.0)
    linear = sign * model.linear
    row, column, coupling = model.row, model.column, model.coupling
    both, one = inside[row] & inside[column], inside[row] ^ inside[column]
    # c x_i x_j less c v_i v_j: c (v_j s_i z_i + v_i s_j z_j + s_i s_j z_i z_j).
    for i, j in ((row, column), (column, row)):
        linear += np.bincount(i[both], (coupling * sign[i] * value[j])[both], minlength=n)
    product = np.where(both, sign[row] * sign[column], np.where(one, sign[row] + sign[column], 0.0))
    kept = product != 0.0
    change = _Model(linear, row[kept], column[kept], (coupling * product)[kept])
    return _flow(change, deadline).lower_bound >= -2.0 * (change.error + model.error)


class RoofDuality(CountingSampler, dimod.ComposedSampler):
    """A sampler that fixes variables by roof duality and leaves the rest to another sampler.

    A problem with counts goes to the child whole, and gets the bound only. Where there is no
    roof dual, for lack of time or because its process failed, ``info["roof_failed"]`` says so.

    Args:
        child: a sampler for the rest: a name, a class or an object.

    Example:
        >>> problem = QuadraticProblem([1.0, -2.0, 0.5], np.zeros((3, 3)))
        >>> solution = RoofDuality("greedy").sample_problem(problem)
        >>> solution.energy, solution.info["fixed"]
        (-2.0, 3)
    """

    def __init__(self, child: object = "swap-tabu") -> None:
        self._child = counting(child)

    @property
    def children(self) -> list[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The one child."""
        return [self._child]

    @property
    def options(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The child's options."""
        names = set(self._child.parameters) - {"cardinality", "groups"}
        return dict.fromkeys(sorted(names), "as in the child")

    bounds = True

    def sample_problem(self, problem: QuadraticProblem, **options: object) -> Solution:
        """The child's answer, with the bound and the fixed variables of roof duality.

        Raises:
            UnknownOptionError: an option that the child does not have.
            InvalidOptionError: an option has an invalid value.
            MissingPackageError: ``dwave-preprocessing`` is not installed.
            ProblemTooLargeError: the flow network does not fit into memory.
        """
        refuse_unknown(type(self).__name__, options, self.options)
        given = given_states(problem, options.get("initial_states"))
        limit = {"time_limit": options.get("time_limit")}
        asked = read_options(type(self).__name__, TimedOptions, limit)
        with running(asked.time_limit) as deadline:
            bare = problem.with_linear(problem.linear, 0.0)
            found = self._sampled(bare, given, options, deadline)
        if deadline.interrupted:
            found = replace(found, info={**found.info, "interrupted": True})
        return found.shifted(problem.offset)

    def _sampled(
        self,
        problem: QuadraticProblem,
        given: States | None,
        options: dict[str, object],
        deadline: Deadline,
    ) -> Solution:
        dual = roof_dual(problem, deadline)
        x = np.zeros(problem.num_variables, dtype=np.int8)
        for index, value in dual.fixed.items():
            x[index] = value
        free = np.array([i for i in range(x.size) if i not in dual.fixed], dtype=np.int64)
        if given is not None:
            options["initial_states"] = given[:, free]
        if deadline.time_limit is not None:
            options["time_limit"] = deadline.remaining
        part = restricted(problem, x, free) if dual.fixed else problem
        found = self._child.sample_problem(part, **options)
        states = np.tile(x, (len(found.samples), 1))
        states[:, free] = found.samples
        bound = dual.lower_bound
        if np.isfinite(found.lower_bound):
            error = rounding(problem) / 4.0 if dual.fixed else 0.0
            bound = max(bound, found.lower_bound - error)
        info = dict(found.info) | {"fixed": len(dual.fixed), "roof_dual": dual.lower_bound}
        if dual.failed:
            info["roof_failed"] = dual.failed
        return Solution.of(problem, states, lower_bound=bound, info=info)

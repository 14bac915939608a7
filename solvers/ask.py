"""The entry point for a caller who has a problem to solve: `solve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dimod

from solvers.counting import configured, counting
from solvers.errors import InvalidProblemError
from solvers.files import read_problem
from solvers.problem import QuadraticProblem
from solvers.solution import Solution


def solve(problem: Any, sampler: Any = "auto", **options: Any) -> Solution:
    """The best states of a problem, with the lower bound proved for them.

    Args:
        problem: a `QuadraticProblem`, a dimod BQM of either vartype or a CQM of exact counts, or
            the path of a file in any format that `qprune formats` lists.
        sampler: a name that `list_samplers` has, a class or an object with ``sample(bqm, ...)``;
            "auto" chooses one by the problem, see `solvers.auto.RULES`.
        **options: of the sampler: ``seed``, ``time_limit`` (seconds), ``num_reads`` and its own.

    Raises:
        InvalidProblemError: ``problem`` is of another kind, or the file cannot be read.
        UnknownSamplerError: no sampler has that name.
        InvalidOptionError: an option has an invalid value.

    Example:
        >>> import dimod
        >>> bqm = dimod.BinaryQuadraticModel({"a": 1.0, "b": -1.0}, {"ab": -2.0}, 0.0, "BINARY")
        >>> solution = solve(bqm)
        >>> solution.sample.tolist(), solution.energy, solution.proved
        ([1, 1], -2.0, True)
    """
    asked = _as_problem(problem)
    if isinstance(sampler, str):
        made, options = configured(sampler, options)
        return made.sample_problem(asked, **options)
    return counting(sampler).sample_problem(asked, **options)


def _as_problem(problem: Any) -> QuadraticProblem:
    if isinstance(problem, QuadraticProblem):
        return problem
    if isinstance(problem, str | Path):
        return read_problem(problem)
    if isinstance(problem, dimod.ConstrainedQuadraticModel):
        return QuadraticProblem.from_cqm(problem)
    if isinstance(problem, dimod.BinaryQuadraticModel):
        return QuadraticProblem.from_bqm(problem)
    raise InvalidProblemError(
        f"a {type(problem).__name__} is not a problem; pass a QuadraticProblem, a dimod BQM or "
        "CQM, or the path of a file"
    )

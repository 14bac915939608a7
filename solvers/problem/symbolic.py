"""Conversion from pyqubo to problems with labels in a fixed order, and back.

pyqubo lists the variables of a compiled model in an order of its own, which changes between
releases and machines; a seed then means nothing. Here they are always in natural order of
their names (``x[2]`` before ``x[10]``), or in the order asked for.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import dimod
import numpy as np
from numpy.typing import ArrayLike

from solvers.errors import InvalidProblemError, MissingPackageError
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Sparse


def from_pyqubo(
    expression: object,
    values: Mapping[str, float] | None = None,
    *,
    order: Sequence[str] | None = None,
    strength: float = 5.0,
    cardinality: int | ArrayLike | None = None,
    groups: Mapping[Hashable, int] | None = None,
) -> QuadraticProblem:
    """The problem of a pyqubo expression or compiled model.

    ``Constraint`` terms are part of the energy, as pyqubo has them; exact counts are better
    given as ``cardinality``. `broken_constraints` lists those that a sample breaks.

    Args:
        expression: a `pyqubo.Base` (of any degree), or a `pyqubo.Model`.
        values: the value of every ``Placeholder``.
        order: all variables in the order wanted; default natural order of their names.
        strength: of the penalty that reduces terms of degree 3 and more; such terms bring
            auxiliary variables, named like ``a * b``, which stand last.
        cardinality: one count, or one per group; see `QuadraticProblem.from_bqm`.
        groups: the group of each variable by name.

    Raises:
        InvalidProblemError: a placeholder has no value, ``order`` lacks a variable, or a count
            would include auxiliary variables.
        MissingPackageError: pyqubo is not installed.

    Example:
        >>> from pyqubo import Binary, Placeholder
        >>> a, b = Binary("a"), Binary("b")
        >>> problem = from_pyqubo(Placeholder("M") * (a + b - 1) ** 2 - b, {"M": 2.0})
        >>> problem.variables, problem.energies([[0, 1], [1, 1]]).tolist()
        (('a', 'b'), [-1.0, 1.0])
    """
    bqm = _model(expression, strength, values)
    given = list(bqm.variables)
    auxiliary = {name for name in given if " * " in str(name)}
    if auxiliary and cardinality is not None and groups is None:
        raise InvalidProblemError(
            "terms of degree 3 and more bring auxiliary variables such as "
            f"{min(auxiliary, key=str)!r}, which one count would include; give groups by name"
        )
    default = sorted(given, key=lambda name: (name in auxiliary, natural_key(str(name))))
    wanted = default if order is None else list(order)
    if set(wanted) != set(given) or len(wanted) != len(given):
        odd = sorted(set(wanted) ^ set(given), key=str)
        raise InvalidProblemError(
            f"order does not fit the expression: {odd[0]!r} is in only one of them"
            if odd
            else "order has a variable twice"
        )
    sorted_bqm = dimod.BinaryQuadraticModel(dimod.BINARY)
    sorted_bqm.add_linear_from((name, bqm.get_linear(name)) for name in wanted)
    sorted_bqm.add_quadratic_from(bqm.iter_quadratic())
    sorted_bqm.offset = bqm.offset
    return QuadraticProblem.from_bqm(sorted_bqm, cardinality=cardinality, groups=groups)


def broken_constraints(
    expression: Any,
    sample: Mapping[Hashable, int],
    values: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Label -> energy of every pyqubo ``Constraint`` that ``sample`` breaks.

    Args:
        expression: a `pyqubo.Base`, or a `pyqubo.Model`.
        sample: the binary value of every variable.
        values: the value of every ``Placeholder``.
    """
    model = _compiled(expression, 5.0)
    decoded = model.decode_sample(dict(sample), vartype="BINARY", feed_dict=dict(values or {}))
    return {label: energy for label, (_, energy) in decoded.constraints(only_broken=True).items()}


def to_pyqubo(problem: QuadraticProblem, strength: str = "strength") -> Any:
    """The problem as a pyqubo expression over ``Binary(label)``.

    Counts become ``Placeholder(strength) * Constraint((sum of the group - count) ** 2)`` with
    labels ``count-<group>``. pyqubo needs seconds and a gigabyte for a dense problem of 1024
    variables; it is meant for small ones.

    Raises:
        MissingPackageError: pyqubo is not installed.
    """
    pyqubo = _pyqubo()
    x = [pyqubo.Binary(str(label)) for label in problem.variables]
    linear = problem.linear + 0.5 * problem.quadratic.diagonal()
    terms = [float(linear[i]) * x[i] for i in range(len(x))]
    terms += [value * x[i] * x[j] for i, j, value in _couplings(problem)]
    if problem.groups is not None and problem.counts is not None:
        for group, count in enumerate(problem.counts.tolist()):
            members = [x[i] for i in np.flatnonzero(problem.groups == group)]
            if members:
                square = (sum(members) - count) ** 2
                constraint = pyqubo.Constraint(square, label=f"count-{group}")
                terms.append(pyqubo.Placeholder(strength) * constraint)
    return sum(terms, start=pyqubo.Num(problem.offset))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``x[2]`` before ``x[10]``.

    Example:
        >>> sorted(["x[10]", "x[2]"], key=natural_key)
        ['x[2]', 'x[10]']
    """
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _couplings(problem: QuadraticProblem) -> list[tuple[int, int, float]]:
    if isinstance(problem.quadratic, Sparse):
        row, col = problem.quadratic.matrix.nonzero()
        value = np.asarray(problem.quadratic.matrix[row, col]).ravel()
    else:
        matrix = problem.quadratic.dense()
        row, col = np.nonzero(matrix)
        value = matrix[row, col]
    upper = row < col
    return list(zip(row[upper].tolist(), col[upper].tolist(), value[upper].tolist(), strict=True))


def _model(
    expression: Any, strength: float, values: Mapping[str, float] | None
) -> dimod.BinaryQuadraticModel:
    try:
        return _compiled(expression, strength).to_bqm(feed_dict=dict(values or {}))
    except ValueError as error:
        raise InvalidProblemError(f"the expression cannot be evaluated: {error}") from error


def _compiled(expression: Any, strength: float) -> Any:
    _pyqubo()
    if hasattr(expression, "to_bqm"):
        return expression
    if not hasattr(expression, "compile"):
        raise InvalidProblemError(f"{expression!r} is not a pyqubo expression or model")
    return expression.compile(strength=strength)


def _pyqubo() -> Any:
    try:
        import pyqubo
    except ImportError as error:
        raise MissingPackageError(
            "pyqubo is not installed: pip install pyqubo (there is none for Python 3.14 yet)"
        ) from error
    return pyqubo

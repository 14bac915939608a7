"""Checks of the shapes and dtypes that annotations of arrays promise, in tests alone.

The packages import the names of jaxtyping for type checkers only, so that it costs a user nothing.
Here they are put where annotations find them, and beartype checks every call of the modules below.
"""

import builtins
from collections.abc import Callable
from inspect import isclass
from typing import get_args

import jaxtyping
from beartype import beartype

NAMES = ("Bool", "Float", "Float64", "Int8", "Int64", "Integer", "Shaped")
MODULES = (
    "qprune.network.groups",
    "qprune.network.weights",
    "qprune.objective.curvature",
    "qprune.objective.samples",
    "qprune.moving.compensate",
    "qprune.steps.formulate",
    "qprune.steps.propose",
    "qprune.steps.select",
    "qprune.steps.start",
    "solvers.problem.problem",
    "solvers.problem.quadratic",
    "solvers.rows.counts",
    "solvers.rows.problem",
)


def checked(function: Callable) -> Callable:
    """``function`` with its arrays checked; arguments of other types have refusals of their own."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if is_array(hint)}
    return beartype(function) if function.__annotations__ else function


def is_array(hint: object) -> bool:
    """True for a type of arrays, or one that has it as a part."""
    if isclass(hint):
        return issubclass(hint, jaxtyping.AbstractArray)
    return any(map(is_array, get_args(hint)))


def install() -> None:
    """Have the modules checked as they are imported."""
    for name in NAMES:
        setattr(builtins, name, getattr(jaxtyping, name))
    jaxtyping.install_import_hook(MODULES, "array_types.checked")

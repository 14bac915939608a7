"""The base of this package's samplers: dimod's `Sampler` with exact counts, and arrays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import dimod
import numpy as np
from numpy.typing import ArrayLike

from solvers.errors import InvalidOptionError, UnknownOptionError
from solvers.problem.problem import QuadraticProblem, States
from solvers.problem.solution import Solution


class CountingSampler(dimod.Sampler):
    """A sampler that keeps every group's count exact.

    A subclass implements `sample_problem` and lists its options in `options` with a line each.
    `sample` is dimod's interface: it takes a BQM of either vartype, ``cardinality`` and
    ``groups`` (see `QuadraticProblem.from_bqm`), and whatever ``options`` lists.

    Example:
        >>> from solvers import get_sampler
        >>> answer = get_sampler("greedy").sample_ising({"a": 1.0, "b": -1.0}, {}, cardinality=1)
        >>> int(answer.first.sample["b"]), float(answer.first.energy)
        (1, -2.0)
    """

    #: Option name -> one line of help; `parameters` lists the same names.
    options: ClassVar[Mapping[str, str]] = {}
    #: True if solutions have a lower bound.
    bounds: ClassVar[bool] = False
    #: Default number of reads without a time limit.
    default_reads: ClassVar[int] = 1

    @property
    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of `sample`, as dimod asks."""
        return {name: [] for name in ("cardinality", "groups", *self.options)}

    @property
    def properties(self) -> dict[str, Any]:
        """Capabilities of the sampler."""
        return {
            "counts": True,
            "bound": self.bounds,
            "initial_states": "initial_states" in self.options,
            "options": dict(self.options),
        }

    @property
    def repeatable(self) -> bool:
        """True if one seed gives one answer; by default where there is a seed."""
        return "seed" in self.parameters

    @property
    def paid(self) -> bool:
        """True if a call is charged for; by default where the child's are."""
        return is_paid(getattr(self, "child", None))

    @abstractmethod
    def sample_problem(self, problem: QuadraticProblem, *args: Any, **options: Any) -> Solution:
        """Solve ``problem``; samples have the exact counts and recomputed energies."""

    def sample(
        self,
        bqm: dimod.BinaryQuadraticModel,
        *,
        cardinality: int | ArrayLike | None = None,
        groups: Mapping[Hashable, int] | ArrayLike | None = None,
        **options: object,
    ) -> dimod.SampleSet:
        """Sample a BQM of either vartype under exact counts of ones (spins +1).

        Raises:
            UnknownOptionError: an option that `parameters` does not list.
            InvalidProblemError: coefficients, counts or groups are invalid.
            InvalidOptionError: an option has an invalid value.
        """
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise UnknownOptionError(
                f"{type(self).__name__} has no option {unknown[0]!r}; it has: "
                + ", ".join(sorted(self.parameters))
            )
        problem = QuadraticProblem.from_bqm(bqm, cardinality=cardinality, groups=groups)
        if options.get("initial_states") is not None:
            options["initial_states"] = states_of(options["initial_states"], problem.variables)
        solution = self.sample_problem(problem, **options)
        return solution.to_sampleset(problem.variables, bqm.vartype)


def is_repeatable(sampler: Any) -> bool:
    """True if ``sampler`` says so by its ``repeatable``, or else has a seed.

    Example:
        >>> is_repeatable(dimod.ExactSolver())
        False
    """
    return bool(getattr(sampler, "repeatable", "seed" in sampler.parameters))


def is_paid(sampler: Any) -> bool:
    """True if ``sampler``, or one that it wraps as its ``child``, says so by its ``paid``.

    Example:
        >>> is_paid(dimod.ExactSolver())
        False
    """
    while sampler is not None and not hasattr(sampler, "paid"):
        sampler = getattr(sampler, "child", None)
    return sampler is not None and bool(sampler.paid)


def states_of(samples: Any, variables: tuple[Hashable, ...]) -> States:
    """Binary states (reads, n) of anything dimod accepts as samples, in the order given.

    Spins -1 and +1 become 0 and 1. A plain array has the order of ``variables``.

    Raises:
        InvalidOptionError: dimod does not accept it, a variable is missing, or a value is
            neither binary nor a spin.

    Example:
        >>> states_of([[-1, 1]], ["a", "b"]).tolist()
        [[0, 1]]
    """
    plain = _is_plain(samples)
    try:
        if plain:
            array, labels = np.atleast_2d(np.asarray(samples)), list(variables)
        else:
            array, labels = dimod.as_samples(samples)
    except (TypeError, ValueError) as error:
        raise InvalidOptionError(f"initial_states are not samples: {error}") from None
    if plain and (array.ndim != 2 or array.shape[1] != len(variables)):
        raise InvalidOptionError(
            f"initial_states have {array.shape[-1]} variables, the problem {len(variables)}"
        )
    column = {label: i for i, label in enumerate(labels)}
    missing = [v for v in variables if v not in column]
    if missing:
        raise InvalidOptionError(f"initial_states lack variable {missing[0]!r}")
    states = np.asarray(array)[:, [column[v] for v in variables]]
    if not (np.isin(states, (0, 1)).all() or np.isin(states, (-1, 1)).all()):
        raise InvalidOptionError("initial_states must hold 0 and 1 only, or -1 and +1 only")
    return np.ascontiguousarray(states > 0, dtype=np.int8)


def _is_plain(samples: Any) -> bool:
    """True for an array, or lists that make one; dimod's tuples are (array, labels)."""
    if isinstance(samples, tuple):
        return all(isinstance(one, int | float | np.number) for one in samples)
    if isinstance(samples, list):
        return all(isinstance(one, int | float | np.number) or _is_plain(one) for one in samples)
    return isinstance(samples, np.ndarray)


def given_states(problem: QuadraticProblem, initial_states: Any) -> States | None:
    """``initial_states`` in any form that `states_of` takes, as (k, n) int8 with exact counts.

    Raises:
        InvalidOptionError: wrong shape, values, variables or counts.
    """
    if initial_states is None:
        return None
    states = states_of(initial_states, problem.variables)
    wrong = np.flatnonzero(~problem.feasible(states))
    if wrong.size:
        raise InvalidOptionError(
            f"initial state {wrong[0]} does not have the problem's exact counts"
        )
    return states


def random_states(problem: QuadraticProblem, num: int, rng: np.random.Generator) -> States:
    """``num`` uniformly random states with exact counts, shape (num, n).

    Example:
        >>> problem = QuadraticProblem(np.zeros(4), np.zeros((4, 4)), counts=2)
        >>> random_states(problem, 3, np.random.default_rng(0)).sum(axis=1).tolist()
        [2, 2, 2]
    """
    if problem.groups is None or problem.counts is None:
        return rng.integers(0, 2, (num, problem.num_variables), dtype=np.int8)
    states = np.zeros((num, problem.num_variables), dtype=np.int8)
    for group, count in enumerate(problem.counts.tolist()):
        members = np.flatnonzero(problem.groups == group)
        for row in states:
            row[rng.permutation(members)[:count]] = 1
    return states


def positive_int(name: str, value: Any) -> int:
    """``value`` as an int of at least 1.

    Raises:
        InvalidOptionError: it is none.

    Example:
        >>> positive_int("num_reads", 5)
        5
    """
    if isinstance(value, bool) or value != int(value) or value < 1:
        raise InvalidOptionError(f"{name} must be a whole number of at least 1, not {value!r}")
    return int(value)

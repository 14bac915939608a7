"""`counting`: any sampler as one that takes a problem with exact counts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from solvers.errors import InvalidOptionError, UnknownOptionError
from solvers.foreign.border import INSTEAD, ForeignSampler, option_names
from solvers.foreign.composite import AskingSampler, ChildOptions, last_resort, options_for
from solvers.foreign.penalty import CardinalityPenalty
from solvers.host.clock import Deadline
from solvers.problem.problem import QuadraticProblem
from solvers.problem.repair import repair
from solvers.problem.solution import Solution
from solvers.registry import find_entry, get_sampler
from solvers.sampler import States


@runtime_checkable
class ProblemSampler(Protocol):
    """A sampler that takes problems with counts; what `counting` returns."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Options of `sample_problem`, besides ``cardinality`` and ``groups``."""
        ...

    def sample_problem(self, problem: QuadraticProblem, **options: Any) -> Solution:
        """Samples with exact counts, energies of the problem, best first."""
        ...


class CountsByModel(AskingSampler):
    """A third party's sampler that counts by ``sample(bqm, cardinality=..., groups=...)``.

    Samples with wrong counts are repaired; ``info["repaired"]`` has their
    share.

    Args:
        child: a sampler with ``cardinality`` among its parameters.
    """

    def __init__(self, child: Any) -> None:
        self.child = child if isinstance(child, ForeignSampler) else ForeignSampler(child)

    @property
    def _of_child(self) -> dict[str, str]:
        names = set(self.child.parameters) - {"cardinality", "groups"}
        return dict.fromkeys(sorted(names), f"as in {self.child.name}")

    def _search(
        self,
        problem: QuadraticProblem,
        asked: ChildOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        options = options_for(self.child, asked, given)
        if problem.counts is not None:
            single = problem.num_groups == 1
            options["cardinality"] = int(problem.counts[0]) if single else problem.counts
            if not single:
                options["groups"] = problem.groups
        answer = self.child.attempt(problem.to_bqm(), options, deadline)
        if answer is None:
            info: dict[str, Any] = {INSTEAD: f"swap descent: {self.child.name} found nothing"}
            states = [last_resort(problem, asked.seed, deadline)]
        else:
            raw = np.asarray(answer.record.sample, dtype=np.int8)
            info = dict(answer.info) | {"repaired": float(1.0 - problem.feasible(raw).mean())}
            states = [repair(problem, raw)]
        if given is not None:
            states.append(given)
        return Solution.of(problem, np.concatenate(states), info=info)


def counting(sampler: Any) -> ProblemSampler:
    """``sampler`` if it takes problems itself, else wrapped so that it does, counts exact.

    Args:
        sampler: a name, a class or an object; see `get_sampler`.

    Raises:
        InvalidOptionError: it is no sampler, or one of another kind of problem.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.zeros((3, 3)), counts=2)
        >>> import dimod
        >>> counting(dimod.ExactSolver()).sample_problem(problem).energy
        -0.5
    """
    found = get_sampler(sampler)
    if isinstance(found, ProblemSampler):
        return found
    if not callable(getattr(found, "sample", None)):
        raise _of_layers(sampler)
    if "cardinality" in option_names(found):
        return CountsByModel(found)
    return CardinalityPenalty(found)


def _of_layers(name: Any) -> InvalidOptionError:
    return InvalidOptionError(
        f"{name!r} solves whole layers (RowProblem), not single problems; "
        f"call get_sampler({name!r})(problem, mask=...)"
    )


def configured(name: str, options: Mapping[str, Any]) -> tuple[ProblemSampler, dict[str, Any]]:
    """A sampler by name, and the options for its ``sample_problem``.

    Args:
        name: a name that `list_samplers` has.
        options: of the constructor or of ``sample_problem``. A seed is dropped where the sampler
            has none.

    Raises:
        UnknownOptionError: neither has an option of that name.
        InvalidOptionError: ``time_limit`` is given to a sampler that cannot keep one, or the
            sampler solves another kind of problem.

    Example:
        >>> sampler, options = configured("greedy", {"seed": 1})
        >>> options
        {'seed': 1}
    """
    entry = find_entry(name)
    if entry.solves == "RowProblem":
        raise _of_layers(name)
    made_with = inspect.signature(entry.load()).parameters
    sampler = counting(get_sampler(name, **{k: options[k] for k in options if k in made_with}))
    rest = {k: value for k, value in options.items() if k not in made_with}
    known = set(sampler.parameters) - {"cardinality", "groups"}
    if "seed" not in known:
        rest.pop("seed", None)
    if "time_limit" in rest and "time_limit" not in known:
        raise InvalidOptionError(f"{name} cannot keep a time limit; leave time_limit out")
    unknown = sorted(set(rest) - known)
    if unknown:
        raise UnknownOptionError(
            f"{name} has no option {unknown[0]!r}; it has: "
            + ", ".join(sorted(known | set(made_with)))
        )
    return sampler, rest

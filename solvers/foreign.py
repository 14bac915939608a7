"""The border to samplers that are not ours: what goes in is checked, what comes out too."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import dimod
import numpy as np
from numpy.typing import NDArray

from solvers.errors import (
    InvalidOptionError,
    InvalidProblemError,
    SamplerFailedError,
    SolverError,
    UnknownOptionError,
)
from solvers.problem import require_bqm
from solvers.sampler import positive_int, states_of

#: In ``info``: in how many answers the sampler's own energies were NaN or infinite.
NOT_FINITE = "not_finite"
# Foreign generators take 31 or 32 bits.
_SEED_LIMIT = 2**31


class ForeignSampler(dimod.Sampler):
    """Someone else's sampler behind the same promises as ours, except for counts.

    Before the call: unknown options and senseless values are refused by name, coefficients are
    finite, variables become the integers 0..n-1 in the model's order (so that a seed means the
    same for every labelling), a seed of any size is folded to 31 bits, initial states may be
    anything dimod takes or a plain (k, n) array. After it: the answer has every variable once,
    in order, with values of the model's vartype, and energies recomputed in float64.

    Args:
        child: any object with ``sample(bqm, **options) -> dimod.SampleSet``.
        name: how errors call it; default the class's name.

    Raises:
        InvalidOptionError: ``child`` has no ``sample``.

    Example:
        >>> import dimod
        >>> sampler = ForeignSampler(dimod.RandomSampler())
        >>> bqm = dimod.BinaryQuadraticModel({"b": 1.0, "a": -1.0}, {}, 0.0, "BINARY")
        >>> list(sampler.sample(bqm, num_reads=2, seed=1).variables)
        ['b', 'a']
    """

    def __init__(self, child: Any, *, name: str | None = None) -> None:
        if not callable(getattr(child, "sample", None)):
            raise InvalidOptionError(
                f"{child!r} is not a sampler: it has no method sample(bqm, **options)"
            )
        self.child = child
        self.name = name or type(child).__name__

    @property
    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of `sample`."""
        return {name: [] for name in sorted(option_names(self.child))}

    @property
    def properties(self) -> dict[str, Any]:
        """What the sampler can do; the child's own properties under ``child``."""
        return {
            "counts": False,
            "bound": False,
            "initial_states": "initial_states" in self.parameters,
            "child": dict(getattr(self.child, "properties", None) or {}),
        }

    def sample(self, bqm: dimod.BinaryQuadraticModel, **options: Any) -> dimod.SampleSet:
        """Sample a BQM of either vartype.

        Raises:
            UnknownOptionError: an option that `parameters` does not list.
            InvalidOptionError: an option has a value that makes no sense.
            InvalidProblemError: no BQM, or a coefficient is not finite.
            SamplerFailedError: the sampler raised, or its answer is not one.
        """
        options = self._checked(bqm, options)
        if is_constant(bqm):
            return _answer_of_constant(bqm, options)
        labels = tuple(bqm.variables)
        plain = labels == tuple(range(len(labels)))
        model = bqm if plain else bqm.relabel_variables(_numbers(labels), inplace=False)
        try:
            answer = self.run(model, options)
            if isinstance(answer, dimod.SampleSet):
                answer.resolve()
        except (SolverError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise SamplerFailedError(
                f"{self.name} failed on {len(labels)} variables: {type(error).__name__}: {error}",
                problem=bqm,
            ) from error
        states = checked_answer(answer, model, self.name)
        return _as_sampleset(answer, states, labels, bqm)

    def run(self, bqm: dimod.BinaryQuadraticModel, options: dict[str, Any]) -> dimod.SampleSet:
        """Call the child on a model over 0..n-1; the place for a sampler's own quirks."""
        return self.child.sample(bqm, **options)

    def _checked(
        self, bqm: dimod.BinaryQuadraticModel, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        require_bqm(bqm)
        refuse_unknown(self.name, options, self.parameters)
        require_finite(bqm)
        checked = {name: value for name, value in options.items() if value is not None}
        if "num_reads" in checked:
            checked["num_reads"] = positive_int("num_reads", checked["num_reads"])
        if not checked.get("time_limit", 0) >= 0:
            raise InvalidOptionError(
                f"time_limit must be at least 0 seconds, not {checked['time_limit']!r}"
            )
        if "seed" in checked:
            checked["seed"] = small_seed(checked["seed"])
        if "initial_states" in checked:
            checked["initial_states"] = _numbered_states(checked["initial_states"], bqm)
        return checked


def option_names(sampler: Any) -> frozenset[str]:
    """The options that a sampler takes: its ``parameters``, and ``sample``'s named keywords.

    Both, because ``parameters`` is often incomplete (`dimod.RandomSampler` leaves out its seed)
    and the keywords are where a remote solver's options go through ``**kwargs``.
    """
    parameters = getattr(sampler, "parameters", None)
    listed = frozenset(parameters) if isinstance(parameters, Mapping) else frozenset()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    keywords = list(inspect.signature(sampler.sample).parameters.values())[1:]
    return listed | frozenset(p.name for p in keywords if p.kind in named)


def refuse_unknown(sampler: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse options that are not in ``known``.

    Raises:
        UnknownOptionError: names the first such option, the sampler, and what it has.
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UnknownOptionError(
            f"{sampler} has no option {unknown[0]!r}; it has: "
            + (", ".join(sorted(known)) or "none")
        )


def require_finite(bqm: dimod.BinaryQuadraticModel) -> None:
    """Refuse a model with NaN or infinite coefficients.

    Raises:
        InvalidProblemError: names the variable or pair.
    """
    # Sums of finite numbers are finite but for overflow, so the slow search is rarely made.
    total = bqm.linear.sum() + bqm.quadratic.sum() + bqm.offset
    if np.isfinite(total):
        return
    for variable, bias in bqm.linear.items():
        if not np.isfinite(bias):
            raise InvalidProblemError(f"the linear bias of {variable!r} is not finite: {bias}")
    for u, v, bias in bqm.iter_quadratic():
        if not np.isfinite(bias):
            raise InvalidProblemError(f"the bias between {u!r} and {v!r} is not finite: {bias}")
    if not np.isfinite(bqm.offset):
        raise InvalidProblemError(f"the offset must be finite, not {bqm.offset}")


def small_seed(seed: Any) -> int:
    """A seed of any size as one of 31 bits; seeds below 2**31 stay as they are.

    Raises:
        InvalidOptionError: it is not a whole number of at least 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidOptionError(f"seed must be a whole number of at least 0, not {seed!r}")
    seed = int(seed)
    if seed < _SEED_LIMIT:
        return seed
    return int(np.random.SeedSequence(seed).generate_state(1)[0]) % _SEED_LIMIT


def checked_answer(answer: Any, bqm: dimod.BinaryQuadraticModel, name: str) -> NDArray[np.int8]:
    """The states of an answer to a model over 0..n-1, shape (reads, n), in the model's vartype.

    Raises:
        SamplerFailedError: not a `dimod.SampleSet`, no rows, other variables, other values.
    """
    size = bqm.num_variables
    if not isinstance(answer, dimod.SampleSet):
        raise SamplerFailedError(
            f"{name} returned {type(answer).__name__}, not a dimod.SampleSet",
            problem=bqm,
            answer=answer,
        )
    if len(answer) == 0:
        raise SamplerFailedError(f"{name} returned no samples", problem=bqm, answer=answer)
    position = {label: i for i, label in enumerate(answer.variables)}
    if set(position) != set(range(size)):
        raise SamplerFailedError(
            f"{name} answered for {len(position)} variables, asked for {size}: they must be "
            "the model's own",
            problem=bqm,
            answer=answer,
        )
    states = np.asarray(answer.record.sample)[:, [position[i] for i in range(size)]]
    allowed = (0, 1) if answer.vartype is dimod.BINARY else (-1, 1)
    if not np.isin(states, allowed).all():
        raise SamplerFailedError(
            f"{name} returned values other than {allowed[0]} and {allowed[1]}",
            problem=bqm,
            answer=answer,
        )
    if answer.vartype is not bqm.vartype:
        states = (states + 1) // 2 if bqm.vartype is dimod.BINARY else 2 * states - 1
    return states.astype(np.int8)


def _numbers(labels: Sequence[Hashable]) -> dict[Hashable, int]:
    return {label: i for i, label in enumerate(labels)}


def _numbered_states(given: Any, bqm: dimod.BinaryQuadraticModel) -> Any:
    """Initial states as dimod's (array, labels 0..n-1), in the model's vartype."""
    labels = tuple(bqm.variables)
    array = not isinstance(given, dimod.SampleSet | Mapping | tuple)
    states = np.atleast_2d(np.asarray(given)) if array else states_of(given, labels)
    if states.shape[1] != len(labels):
        raise InvalidOptionError(
            f"initial_states have {states.shape[1]} variables, the model {len(labels)}"
        )
    if not (np.isin(states, (0, 1)).all() or np.isin(states, (-1, 1)).all()):
        raise InvalidOptionError("initial_states must hold 0 and 1 only, or -1 and +1 only")
    binary = (states > 0).astype(np.int8)
    return (binary if bqm.vartype is dimod.BINARY else 2 * binary - 1, list(range(len(labels))))


def is_constant(bqm: dimod.BinaryQuadraticModel) -> bool:
    """Whether every state has the same energy because every bias is zero."""
    # Sums first: they are fast, and biases that cancel are rare.
    return (
        bqm.linear.sum() == 0
        and bqm.quadratic.sum() == 0
        and not any(bqm.linear.values())
        and not any(bias for _, _, bias in bqm.iter_quadratic())
    )


def _answer_of_constant(
    bqm: dimod.BinaryQuadraticModel, options: Mapping[str, Any]
) -> dimod.SampleSet:
    """The answer where there is nothing to solve: many samplers fail or warn there."""
    low = 0 if bqm.vartype is dimod.BINARY else -1
    states = np.full((options.get("num_reads", 1), bqm.num_variables), low, dtype=np.int8)
    return dimod.SampleSet.from_samples_bqm(
        (states, list(bqm.variables)), bqm, sort_labels=False, aggregate_samples=False
    )


def _as_sampleset(
    answer: dimod.SampleSet,
    states: NDArray[np.int8],
    labels: Sequence[Hashable],
    bqm: dimod.BinaryQuadraticModel,
) -> dimod.SampleSet:
    """The child's answer under the caller's labels, its own data kept, energies recomputed."""
    vectors: dict[str, Any] = {
        name: vector
        for name, vector in answer.data_vectors.items()
        if name not in ("energy", "sample")
    }
    told = np.asarray(answer.record.energy, dtype=np.float64)
    senseless = {} if np.isfinite(told).all() else {NOT_FINITE: 1}
    return dimod.SampleSet.from_samples(
        (states, list(labels)),
        vartype=bqm.vartype,
        energy=bqm.energies((states, list(labels))),
        info=dict(answer.info) | senseless,
        sort_labels=False,
        **vectors,
    )

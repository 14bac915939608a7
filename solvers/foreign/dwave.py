"""D-Wave's quantum processors and hybrid solvers, which are remote and paid.

A `Meter` shows the cost of every call before it is made, stores its problem id before
waiting and records its charge. Connection settings (``solver``, ``token``, ``profile``, ...)
are D-Wave's own and better kept in its configuration file; no message shows a token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import dimod
import numpy as np

from solvers.errors import InvalidOptionError, ProblemTooLargeError, SamplerFailedError, SolverError
from solvers.foreign.border import ForeignSampler, require_finite
from solvers.foreign.charges import Meter, redacted
from solvers.host.clock import Deadline
from solvers.problem.problem import QuadraticProblem, require_bqm
from solvers.problem.repair import repair
from solvers.problem.solution import Solution
from solvers.sampler import CountingSampler

_METER_OPTIONS = ("max_charge_seconds", "confirm", "observe", "problem_ids")
_MICROSECONDS = 1e-6


def qpu(*, embedding_timeout: int = 60, **config: Any) -> Qpu:
    """A quantum processor, each model embedded anew by minorminer: for sparse models.

    Args:
        embedding_timeout: seconds that the search for an embedding may take.
        **config: `Meter`'s arguments, and those of ``dwave.system.DWaveSampler``.
    """

    def connect(**theirs: Any) -> Any:
        from dwave.system import DWaveSampler, EmbeddingComposite

        return EmbeddingComposite(DWaveSampler(**theirs))

    meter, child = _connected("qpu", connect, config)
    return Qpu(child, meter, embedding_timeout=embedding_timeout)


def qpu_clique(**config: Any) -> QpuClique:
    """A quantum processor, with its ready-made clique embeddings: for dense models.

    Args:
        **config: `Meter`'s arguments, and those of ``dwave.system.DWaveCliqueSampler``.
    """

    def connect(**theirs: Any) -> Any:
        from dwave.system import DWaveCliqueSampler

        return DWaveCliqueSampler(**theirs)

    meter, child = _connected("qpu-clique", connect, config)
    return QpuClique(child, meter)


def hybrid_bqm(**config: Any) -> HybridBqm:
    """Leap's hybrid BQM solver.

    Args:
        **config: `Meter`'s arguments, and those of ``dwave.system.LeapHybridSampler``.
    """

    def connect(**theirs: Any) -> Any:
        from dwave.system import LeapHybridSampler

        return LeapHybridSampler(**theirs)

    meter, child = _connected("hybrid-bqm", connect, config)
    return HybridBqm(child, meter)


def hybrid_cqm(**config: Any) -> HybridCqm:
    """Leap's hybrid CQM solver, which keeps counts as constraints.

    Args:
        **config: `Meter`'s arguments, and those of ``dwave.system.LeapHybridCQMSampler``.
    """

    def connect(**theirs: Any) -> Any:
        from dwave.system import LeapHybridCQMSampler

        return LeapHybridCQMSampler(**theirs)

    meter, child = _connected("hybrid-cqm", connect, config)
    return HybridCqm(child, meter)


def _connected(
    name: str, connect: Callable[..., Any], config: Mapping[str, Any]
) -> tuple[Meter, Any]:
    meter = Meter(name, **{key: config[key] for key in _METER_OPTIONS if key in config})
    theirs = {key: value for key, value in config.items() if key not in _METER_OPTIONS}
    try:
        return meter, connect(**theirs)
    except ImportError:
        raise
    except Exception as error:
        raise SamplerFailedError(
            f"{name} cannot connect: {type(error).__name__}: {redacted(error)}; "
            "`dwave config create` stores an access token, `dwave ping` tests it"
        ) from None


def _failed(meter: Meter, error: Exception, problem: Any) -> SamplerFailedError:
    """The error of a failed call: no access token, the problem id if there is one."""
    stored = f"; the answer may still come: problem {meter.last_problem_id}"
    return SamplerFailedError(
        f"{meter.name} failed: {type(error).__name__}: {redacted(error)}"
        + (stored if meter.last_problem_id else ""),
        problem=problem,
    )


class PaidSampler(ForeignSampler):
    """A third party's sampler whose calls are paid; each runs to its end, since its charge is due.

    Args:
        child: D-Wave's sampler.
        meter: of its calls.
    """

    def __init__(self, child: Any, meter: Meter) -> None:
        super().__init__(child, name=meter.name)
        self.meter = meter

    @property
    def paid(self) -> bool:
        """Every call is charged for."""
        return True

    @property
    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of `sample`; a ``time_limit`` only where the backend has one."""
        return {name: [] for name in sorted(self.theirs)}

    def sample(self, bqm: dimod.BinaryQuadraticModel, **options: Any) -> dimod.SampleSet:
        """One call, see `ForeignSampler.sample`; its ``time_limit`` is what it charges."""
        require_bqm(bqm)
        require_finite(bqm)
        return self.attempt(bqm, options, Deadline())

    def attempt(
        self,
        bqm: dimod.BinaryQuadraticModel,
        options: Mapping[str, Any],
        deadline: Deadline,
        *,
        endless: bool = True,
    ) -> dimod.SampleSet:
        answer = super().attempt(bqm, options, Deadline(), endless=False)
        assert answer is not None
        return answer

    def run(self, bqm: dimod.BinaryQuadraticModel, options: dict[str, Any]) -> dimod.SampleSet:
        try:
            self.require_fit(bqm)
            seconds, minimum = self.cost(bqm, options)
            self.meter.approve(bqm.num_variables, seconds, minimum)
            return self.meter.collect(self.submit(bqm, options), seconds)
        except SolverError:
            raise
        except Exception as error:
            # Not chained: the client's own message and traceback may hold the token.
            raise _failed(self.meter, error, bqm) from None

    def submit(self, bqm: dimod.BinaryQuadraticModel, options: dict[str, Any]) -> dimod.SampleSet:
        """Send the model off; the answer need not be there yet."""
        return self.child.sample(bqm, **options)

    @abstractmethod
    def require_fit(self, bqm: dimod.BinaryQuadraticModel) -> None:
        """Raise `ProblemTooLargeError` if the backend cannot hold the model."""

    @abstractmethod
    def cost(
        self, bqm: dimod.BinaryQuadraticModel, options: Mapping[str, Any]
    ) -> tuple[float, float]:
        """Seconds that the call will be charged: (estimate, minimum)."""


class Qpu(PaidSampler):
    """A processor behind `dwave.system.EmbeddingComposite`."""

    def __init__(self, child: Any, meter: Meter, *, embedding_timeout: int = 60) -> None:
        super().__init__(child, meter)
        self._timeout = embedding_timeout

    def require_fit(self, bqm: dimod.BinaryQuadraticModel) -> None:
        chip = self.child.child
        qubits, couplers = len(chip.nodelist), len(chip.edgelist)
        if bqm.num_variables > qubits or bqm.num_interactions > couplers:
            raise ProblemTooLargeError(
                f"{self.name}: the model has {bqm.num_variables} variables and "
                f"{bqm.num_interactions} couplings, the chip {qubits} qubits and {couplers} "
                "couplers; use smaller blocks, or Decompose(sampler, size=...)"
            )

    def submit(self, bqm: dimod.BinaryQuadraticModel, options: dict[str, Any]) -> dimod.SampleSet:
        options = {"embedding_parameters": {"timeout": self._timeout}} | options
        try:
            return super().submit(bqm, options)
        except ValueError as error:
            if "no embedding" not in str(error):
                raise
            raise ProblemTooLargeError(
                f"{self.name}: no embedding of {bqm.num_variables} variables and "
                f"{bqm.num_interactions} couplings on {len(self.child.child.nodelist)} qubits "
                f"was found in {self._timeout} s; use qpu-clique for dense models, smaller "
                "blocks, or Decompose(sampler, size=...)"
            ) from None

    def cost(
        self, bqm: dimod.BinaryQuadraticModel, options: Mapping[str, Any]
    ) -> tuple[float, float]:
        return _access_time(self.child.child, bqm, options)


class QpuClique(PaidSampler):
    """A processor behind `dwave.system.DWaveCliqueSampler`."""

    @property
    def largest_clique_size(self) -> int:
        """The most variables that a model may have."""
        return int(self.child.largest_clique_size)

    def require_fit(self, bqm: dimod.BinaryQuadraticModel) -> None:
        largest = self.largest_clique_size
        if bqm.num_variables > largest:
            raise ProblemTooLargeError(
                f"{self.name}: the model has {bqm.num_variables} variables, the chip's largest "
                f"clique {largest}; use blocks of at most {largest}, or "
                f"Decompose(sampler, size={largest})"
            )

    def cost(
        self, bqm: dimod.BinaryQuadraticModel, options: Mapping[str, Any]
    ) -> tuple[float, float]:
        return _access_time(self.child.child, bqm, options)


class HybridBqm(PaidSampler):
    """Leap's hybrid BQM solver; ``time_limit`` is what it charges."""

    def require_fit(self, bqm: dimod.BinaryQuadraticModel) -> None:
        largest = self.child.properties.get("maximum_number_of_variables", float("inf"))
        if bqm.num_variables > largest:
            raise ProblemTooLargeError(
                f"{self.name}: the model has {bqm.num_variables} variables, the solver takes "
                f"{largest}; use smaller blocks, or Decompose(sampler, size={largest})"
            )

    def cost(
        self, bqm: dimod.BinaryQuadraticModel, options: Mapping[str, Any]
    ) -> tuple[float, float]:
        minimum = float(self.child.min_time_limit(bqm))
        return _at_least(self.name, options.get("time_limit"), minimum), minimum


class HybridCqm(CountingSampler):
    """Leap's hybrid CQM solver: counts are its constraints, infeasible samples are repaired.

    Args:
        child: `dwave.system.LeapHybridCQMSampler`.
        meter: of its calls.
    """

    options: ClassVar = {
        "time_limit": "seconds that the solver works, and charges; default its minimum",
        "label": "how the problem is called in the backend's list",
    }

    @property
    def paid(self) -> bool:
        """Every call is charged for."""
        return True

    def __init__(self, child: Any, meter: Meter) -> None:
        self.child = child
        self.meter = meter

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        time_limit: float | None = None,
        label: str | None = None,
    ) -> Solution:
        if not problem.num_variables:
            return Solution.of(problem, np.zeros((1, 0)))
        cqm = problem.to_cqm()
        sent = {"time_limit": time_limit, "label": label}
        sent = {name: value for name, value in sent.items() if value is not None}
        try:
            minimum = float(self.child.min_time_limit(cqm))
            seconds = _at_least(self.meter.name, time_limit, minimum)
            self.meter.approve(problem.num_variables, seconds, minimum)
            answer = self.meter.collect(self.child.sample_cqm(cqm, **sent), seconds)
        except SolverError:
            raise
        except Exception as error:
            raise _failed(self.meter, error, problem) from None
        return self._solution(problem, answer)

    def _solution(self, problem: QuadraticProblem, answer: dimod.SampleSet) -> Solution:
        position = {label: i for i, label in enumerate(answer.variables)}
        missing = [label for label in problem.variables if label not in position]
        if missing or not len(answer):
            what = f"without variable {missing[0]!r}" if missing else "without samples"
            raise SamplerFailedError(
                f"{self.meter.name} answered {what}", problem=problem, answer=answer
            )
        columns = [position[label] for label in problem.variables]
        raw = np.asarray(answer.record.sample)[:, columns].astype(np.int8)
        info = dict(answer.info) | {"repaired": float(1.0 - problem.feasible(raw).mean())}
        return Solution.of(problem, repair(problem, raw), info=info)


def _at_least(name: str, time_limit: float | None, minimum: float) -> float:
    if time_limit is None:
        return minimum
    if not time_limit >= minimum:
        raise InvalidOptionError(
            f"{name} works for at least {minimum:.3g} s on this problem; "
            f"time_limit={time_limit!r} is less"
        )
    return float(time_limit)


def _access_time(
    chip: Any, bqm: dimod.BinaryQuadraticModel, options: Mapping[str, Any]
) -> tuple[float, float]:
    """Seconds on the processor, (estimate, minimum): the solver's own estimate where it has one.

    Otherwise programming (15 ms) and, per read, annealing, thermalisation and 0.2 ms of readout
    and delay, which are typical of today's processors.
    """
    reads = int(options.get("num_reads", 1))
    estimate = getattr(getattr(chip, "solver", None), "estimate_qpu_access_time", None)
    if callable(estimate):
        timed = ("annealing_time", "programming_thermalization", "readout_thermalization")
        known = {name: options[name] for name in timed if name in options}
        microseconds = [
            float(estimate(bqm.num_variables, num_reads=num, **known))  # pyright: ignore[reportArgumentType]
            for num in (reads, 1)
        ]
    else:
        anneal = float(
            options.get("annealing_time", chip.properties.get("default_annealing_time", 20.0))
        )
        rest = float(options.get("readout_thermalization", 0.0))
        microseconds = [15_000.0 + num * (anneal + rest + 200.0) for num in (reads, 1)]
    return _MICROSECONDS * microseconds[0], _MICROSECONDS * microseconds[1]

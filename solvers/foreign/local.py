"""D-Wave's samplers that run on this machine, and `neal`, each behind `ForeignSampler`.

`solvers.registry` calls these factories by name, so that this module is imported only on use.

OpenJij's samplers, behind `ForeignSampler`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import dimod
import numpy as np

from solvers.errors import InvalidOptionError, ProblemTooLargeError
from solvers.foreign.border import ForeignSampler, Options
from solvers.host.clock import Deadline
from solvers.host.machine import require_memory

_HOUR_IN_MS = 3_600_000
# Seconds of a read; a longer one ends too late for a time limit or an interrupt.
_LONG_READ = 0.3
# Limits of one call: seconds, about, and entries of its states.
_CALL, _MOST_ENTRIES = 1.0, 1 << 22
# From this many couplings on, temperatures are chosen here where there is a time limit.
_MANY_COUPLINGS = 30_000


def simulated_annealing() -> Annealing:
    """Single-flip simulated annealing (`dwave.samplers.SimulatedAnnealingSampler`)."""
    from dwave.samplers import SimulatedAnnealingSampler

    return Annealing(SimulatedAnnealingSampler(), name="sa", per_coupling=1e-9)


def steepest_descent() -> Steepest:
    """Single-flip steepest descent (`dwave.samplers.SteepestDescentSolver`)."""
    from dwave.samplers import SteepestDescentSolver

    return Steepest(SteepestDescentSolver(), name="steepest")


def path_integral() -> Annealing:
    """Simulated quantum annealing (`dwave.samplers.PathIntegralAnnealingSampler`)."""
    from dwave.samplers import PathIntegralAnnealingSampler

    return Annealing(PathIntegralAnnealingSampler(), name="path-integral", per_coupling=2e-8)


def rotor() -> Annealing:
    """Annealing of planar rotors (`dwave.samplers.RotorModelAnnealingSampler`)."""
    from dwave.samplers import RotorModelAnnealingSampler

    return Annealing(RotorModelAnnealingSampler(), name="rotor", per_coupling=2e-9)


def neal() -> Annealing:
    """`neal.SimulatedAnnealingSampler`, today a shell over D-Wave's local annealer."""
    import neal

    return Annealing(neal.SimulatedAnnealingSampler(), name="neal", per_coupling=1e-9)


def tabu() -> Tabu:
    """Multistart tabu search (`dwave.samplers.TabuSampler`) bounded by moves, not by the clock."""
    from dwave.samplers import TabuSampler

    return Tabu(TabuSampler(), name="tabu")


def tree() -> Tree:
    """Exact by tree decomposition (`dwave.samplers.TreeDecompositionSolver`)."""
    from dwave.samplers import TreeDecompositionSolver

    return Tree(TreeDecompositionSolver(), name="tree")


class Annealing(ForeignSampler):
    """One of D-Wave's annealers, which can be interrupted after each read.

    Args:
        child: the sampler.
        name: its name in messages.
        per_coupling: seconds of a sweep per coupling at most, about.
    """

    def __init__(self, child: Any, *, name: str, per_coupling: float) -> None:
        super().__init__(child, name=name)
        self._per_coupling = per_coupling

    def require_room(self, model: dimod.BinaryQuadraticModel, options: Options) -> None:
        theirs = options.get("interrupt_function")
        if theirs is not None and not callable(theirs):
            raise InvalidOptionError(f"interrupt_function must be callable, not {theirs!r}")
        sweeps = _number(options.get("num_sweeps"), 1000.0)
        require_memory(32.0 * sweeps, f"a schedule of {sweeps:.3g} sweeps", "ask for fewer")
        _require_states(model, options)

    def reads_at_once(self, model: dimod.BinaryQuadraticModel, options: Options) -> int | None:
        if options.get("initial_states_generator", "random") != "random":
            return None
        seconds = self._seconds_per_read(model, options)
        if seconds > _LONG_READ:
            return 1
        # Initial states are drawn before the first read: an interrupt may come before any answer.
        return max(1, min(int(_CALL / seconds), _MOST_ENTRIES // model.num_variables))

    def apart(
        self, model: dimod.BinaryQuadraticModel, options: Options, deadline: Deadline
    ) -> bool:
        limited = deadline.time_limit is not None
        return limited and self._seconds_per_read(model, options) > _LONG_READ

    def _seconds_per_read(self, model: dimod.BinaryQuadraticModel, options: Options) -> float:
        couplings = 2.0 * model.num_interactions + 10.0 * model.num_variables
        sweeps = max(1.0, _number(options.get("num_sweeps"), 1000.0))
        return sweeps * couplings * self._per_coupling

    def clocked(self, options: Options, deadline: Deadline, seconds_per_read: float) -> Options:
        theirs = options.get("interrupt_function")
        longest, before = seconds_per_read, None

        def ended() -> bool:
            nonlocal longest, before
            now = time.perf_counter()
            longest = longest if before is None else max(longest, now - before)
            before = now
            return deadline.remaining <= longest or (theirs is not None and theirs())

        return options | {"interrupt_function": ended}

    def hurried(self, model: dimod.BinaryQuadraticModel, options: Options) -> Options:
        # D-Wave's own choice of temperatures is a loop over all couplings in Python.
        given = options.keys() & {"beta_range", "beta_schedule", "Hp_field", "Hd_field"}
        if given or model.num_interactions < _MANY_COUPLINGS:
            return {}
        return {"beta_range": _beta_range(model)}

    def learned(self, answer: dimod.SampleSet, options: Options) -> Options:
        # A loop over all couplings finds them; they do not depend on the seed.
        chosen = answer.info.get("beta_range")
        if chosen is None or options.keys() & {"beta_schedule", "Hp_field", "Hd_field"}:
            return {}
        return {"beta_range": [float(beta) for beta in chosen]}


class Steepest(ForeignSampler):
    """D-Wave's steepest descent; reads are short, and many reads are made in several calls."""

    def require_room(self, model: dimod.BinaryQuadraticModel, options: Options) -> None:
        _require_states(model, options)

    def reads_at_once(self, model: dimod.BinaryQuadraticModel, options: Options) -> int | None:
        if options.get("initial_states_generator", "random") != "random":
            return None
        # Enough reads to outweigh the time before the first one, and some 50 ms at least.
        size, couplings = model.num_variables, model.num_interactions
        return int((0.05 + 4e-7 * couplings) // (1e-6 + 8e-9 * size * size)) + 1

    def apart(
        self, model: dimod.BinaryQuadraticModel, options: Options, deadline: Deadline
    ) -> bool:
        return False


class Tabu(ForeignSampler):
    """D-Wave's tabu search, deterministic for a seed.

    D-Wave's default stops after 20 ms of wall clock, so that a seed means little. Here a read is
    one search of ``max(200 n, 10000)`` moves with one restart of a quarter of that, unless
    ``timeout`` (ms) is given, which brings the clock back; so does ``time_limit``.
    """

    #: Moves per variable of the first search; 0.1 s at n = 1024.
    MOVES_PER_VARIABLE = 200
    _FEWEST_MOVES = 10_000

    def require_room(self, model: dimod.BinaryQuadraticModel, options: Options) -> None:
        size = float(model.num_variables)
        require_memory(
            32.0 * size * size,
            f"the dense matrices of {size:.0f} variables",
            "use a sampler for sparse problems, such as sa or swap-tabu",
        )
        _require_states(model, options)

    def reads_at_once(self, model: dimod.BinaryQuadraticModel, options: Options) -> int | None:
        if options.get("initial_states_generator", "random") != "random":
            return None
        if "timeout" in options:
            return 1
        size = model.num_variables
        moves = max(self.MOVES_PER_VARIABLE * size, self._FEWEST_MOVES)
        return 1 + int(0.05 // (2e-9 * moves * size))

    def apart(
        self, model: dimod.BinaryQuadraticModel, options: Options, deadline: Deadline
    ) -> bool:
        return False

    def clocked(self, options: Options, deadline: Deadline, seconds_per_read: float) -> Options:
        if deadline.time_limit is None:
            return options
        # Whole milliseconds for each read; the rest of the call needs some, too.
        left = int(1000.0 * deadline.remaining / _number(options.get("num_reads"), 1.0))
        asked = _number(options.get("timeout"), float(_HOUR_IN_MS))
        return self._by_moves(options) | {"timeout": int(max(1, min(asked, left)))}

    def run(self, bqm: dimod.BinaryQuadraticModel, options: Options) -> dimod.SampleSet:
        return super().run(bqm, options if "timeout" in options else self._by_moves(options))

    def _by_moves(self, options: Options) -> Options:
        return {
            "timeout": _HOUR_IN_MS,
            "num_restarts": 1,
            "coefficient_z_first": self.MOVES_PER_VARIABLE,
            "coefficient_z_restart": self.MOVES_PER_VARIABLE // 4,
            "lower_bound_z": self._FEWEST_MOVES,
        } | options


class Tree(ForeignSampler):
    """D-Wave's tree decomposition: exact, for models of small treewidth only."""

    # Variables; a larger model may take long and cannot be interrupted.
    _SMALL = 20

    def require_room(self, model: dimod.BinaryQuadraticModel, options: Options) -> None:
        limit = self.child.properties["max_treewidth"]
        # A model has treewidth of at least its smallest degree; the library's own search for
        # an elimination order takes minutes on a dense model before it gives up.
        smallest = min(int(model.degree(v)) for v in model.variables)
        if smallest > limit:
            raise ProblemTooLargeError(
                f"tree: the model's treewidth is at least {smallest}, the solver's limit is "
                f"{limit}; use it for sparse models, or another sampler such as exact"
            )
        _require_states(model, options)

    @property
    def repeats(self) -> bool:
        return False

    def apart(
        self, model: dimod.BinaryQuadraticModel, options: Options, deadline: Deadline
    ) -> bool:
        return model.num_variables > self._SMALL

    def run(self, bqm: dimod.BinaryQuadraticModel, options: Options) -> dimod.SampleSet:
        self.require_room(bqm, options)
        try:
            return super().run(bqm, options)
        except ValueError as error:
            if "treewidth" not in str(error):
                raise
            raise ProblemTooLargeError(
                f"tree: the model's treewidth exceeds the solver's limit of "
                f"{self.child.properties['max_treewidth']}; use another sampler, or decompose"
            ) from error


def _beta_range(model: dimod.BinaryQuadraticModel) -> list[float]:
    """First and last inverse temperature: spins are free at the first, frozen at the last.

    From the root of the sum of squares of a spin's bias and couplings: its field with
    random neighbours and, divided by the root of their number, the size of one coupling.
    """
    vectors = model.to_numpy_vectors(variable_order=range(model.num_variables))
    linear, (row, col, bias) = vectors[:2]
    if model.vartype is dimod.BINARY:
        sums = np.bincount(row, bias, linear.size) + np.bincount(col, bias, linear.size)
        linear, bias = 0.5 * linear + 0.25 * sums, 0.25 * bias
    squares = np.bincount(row, bias**2, linear.size) + np.bincount(col, bias**2, linear.size)
    fields = np.sqrt(linear**2 + squares)
    neighbours = 1.0 + 2.0 * bias.size / linear.size
    return [0.2 / float(fields.max()), 4.0 * neighbours**0.5 / float(fields.mean())]


def _require_states(model: dimod.BinaryQuadraticModel, options: Options) -> None:
    reads = _number(options.get("num_reads"), 1.0)
    require_memory(
        4.0 * reads * model.num_variables, f"an answer of {reads:.0f} reads", "ask for fewer"
    )


def _number(value: Any, otherwise: float) -> float:
    """A number as it is; ``otherwise`` for anything else, which the sampler refuses."""
    return float(value) if isinstance(value, int | float) else otherwise


# Seconds of a read per coupling: before its first sweep, and in a sweep, about.
_PER_COUPLING, _PER_SWEEP = 2e-5, 2e-9
# Seconds of a read; longer ones are made in a process of their own.
_LONG = 0.2


def openjij_annealing() -> OpenJij:
    """Simulated annealing (`openjij.SASampler`)."""
    import openjij

    return OpenJij(openjij.SASampler(), name="openjij-sa")


def quantum_annealing() -> OpenJij:
    """Simulated quantum annealing (`openjij.SQASampler`)."""
    import openjij

    return OpenJij(openjij.SQASampler(), name="openjij-sqa")


class OpenJij(ForeignSampler):
    """An OpenJij sampler with the guarantees of this package.

    OpenJij itself makes all reads of a seeded call alike, seeds numpy's global
    generator, and takes one initial state. Here each read has a seed and an initial state of
    its own, and the global generator is left as it was.
    """

    @property
    def theirs(self) -> frozenset[str]:
        """The options; ``initial_states`` in place of ``initial_state``."""
        names = inspect.signature(self.child.sample).parameters.keys()
        return frozenset(names - {"bqm", "initial_state", "reinitialize_state"}) | {
            "initial_states"
        }

    def reads_at_once(self, model: dimod.BinaryQuadraticModel, options: Options) -> int | None:
        return 1 + int(_LONG // self._seconds_per_read(model, options))

    def apart(
        self, model: dimod.BinaryQuadraticModel, options: Options, deadline: Deadline
    ) -> bool:
        # A read cannot be interrupted.
        limited = deadline.time_limit is not None
        return limited or self._seconds_per_read(model, options) > _LONG

    def _seconds_per_read(self, model: dimod.BinaryQuadraticModel, options: Options) -> float:
        sweeps, slices = (
            value if isinstance(value := options.get(name), int | float) else usual
            for name, usual in (("num_sweeps", 1000), ("trotter", 4))
        )
        couplings = model.num_interactions + model.num_variables
        return 1e-3 + couplings * (_PER_COUPLING + _PER_SWEEP * sweeps * slices)

    def run(self, bqm: dimod.BinaryQuadraticModel, options: Options) -> dimod.SampleSet:
        options = dict(options)
        given = options.pop("initial_states", None)
        states = [] if given is None else np.asarray(given[0]).tolist()
        reads = options.pop("num_reads", max(1, len(states)))
        seed = options.pop("seed", None)
        if seed is None and not states:
            return self._call(bqm, num_reads=reads, **options)
        seeds = np.random.SeedSequence(seed).generate_state(reads)
        answers = []
        for read in range(reads):
            start = {"initial_state": states[read]} if read < len(states) else {}
            answers.append(self._call(bqm, num_reads=1, seed=int(seeds[read]), **options, **start))
        joined = dimod.concatenate(answers)
        return dimod.SampleSet(joined.record, joined.variables, {}, joined.vartype)

    def _call(self, bqm: dimod.BinaryQuadraticModel, **options: Any) -> dimod.SampleSet:
        with _global_generator_kept():
            answer = self.child.sample(bqm, **options)
        # A plain sample set: OpenJij's own class holds arrays that are not JSON-friendly.
        return dimod.SampleSet(answer.record, answer.variables, {}, answer.vartype)


@contextmanager
def _global_generator_kept() -> Generator[None]:
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002

"""OpenJij's samplers, behind `ForeignSampler`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dimod
import numpy as np

from solvers.clock import Deadline
from solvers.foreign import ForeignSampler, Options

# Seconds of a read per coupling: before its first sweep, and in a sweep, about.
_PER_COUPLING, _PER_SWEEP = 2e-5, 2e-9
# Seconds of a read; longer ones are made in a process of their own.
_LONG = 0.2


def simulated_annealing() -> OpenJij:
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
def _global_generator_kept() -> Iterator[None]:
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002

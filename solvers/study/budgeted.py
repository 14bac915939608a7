"""A study's way to run a sampler, as a sampler: every call spends one budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from solvers.problem import QuadraticProblem
from solvers.sampler import CountingSampler
from solvers.solution import Solution
from solvers.study.bench import Bench, SamplerSetting
from solvers.study.budgets import Budget

_NAME = "the block"


class Budgeted(CountingSampler):
    """A sampler that is called, on each problem anew, as `solvers.study.compare` does.

    The model is built, the penalty's strength and the number of sweeps that fit are chosen, and
    the sampler is warmed up before its clock starts. It does not get the caller's initial states
    (``initial_states``): all samplers begin with the problem alone.

    Args:
        setting: the sampler and its options.
        budget: of one call.
        clock: "wall" or "cpu".
        threads: of the sampler.
    """

    options: ClassVar[Mapping[str, str]] = {"seed": "of the sampler, where it has one"}

    def __init__(
        self, setting: SamplerSetting, budget: Budget, clock: str = "wall", threads: int = 1
    ) -> None:
        self.setting, self.budget = setting, budget
        self._bench = Bench(threads, clock)
        self._bench.define(setting)

    def sample_problem(self, problem: QuadraticProblem, *, seed: int = 0) -> Solution:
        """The best state that the budget found, counts exact.

        The solution's ``info`` has ``sampler_seconds`` (by the clock), ``sampler_cpu_seconds``,
        ``preparation_seconds``, ``num_reads`` and ``feasible_share`` (before repair).

        Raises:
            SolverError: the sampler cannot take the problem, or fails.
        """
        self._bench.forget(_NAME)
        self._bench.hold(_NAME, problem)
        ready = self._bench.prepare(_NAME, self.setting.label, self.budget)
        found = self._bench.sample(self.budget, seed)
        bits = np.frombuffer(bytes.fromhex(found["state"]), dtype=np.uint8)
        state = np.unpackbits(bits, count=problem.num_variables).astype(np.int8)
        bound = found["lower_bound"]
        info = {
            "sampler_seconds": found["seconds"],
            "sampler_cpu_seconds": found["cpu_seconds"],
            "preparation_seconds": ready.build_seconds + ready.warmup_seconds,
            "num_reads": found["num_reads"],
            "feasible_share": found["feasible_share"],
        }
        return Solution.of(
            problem, state, lower_bound=-np.inf if bound is None else bound, info=info
        )

"""Studies of samplers: the same problems and time for all, and statistics of the results."""

from solvers.study.bench import SamplerSetting
from solvers.study.budgets import Reads, Seconds, Sweeps
from solvers.study.compare import Study, compare, read_study
from solvers.study.instances import Instance, generate, read_instances, read_known

__all__ = [
    "Instance",
    "Reads",
    "SamplerSetting",
    "Seconds",
    "Study",
    "Sweeps",
    "compare",
    "generate",
    "read_instances",
    "read_known",
    "read_study",
]

"""Pruning studies: the same run with one sampler after another, and the effect on the network."""

from qprune.study.compare import PruningStudy, compare_pruning, read_pruning_study
from qprune.study.trial import ModelTrial

__all__ = [
    "ModelTrial",
    "PruningStudy",
    "compare_pruning",
    "read_pruning_study",
]

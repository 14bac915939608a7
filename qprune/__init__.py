"""Prune neural networks by solving restore-or-prune choices as binary quadratic models."""

import solvers

if not getattr(solvers, "QPRUNE_SOLVERS", False):
    raise ImportError(
        f"qprune needs its own package `solvers`, but Python found {solvers.__file__} first; "
        "rename that file, or run from another folder"
    )

from qprune.data.augment import Mixup, ShiftImages
from qprune.data.calibration import Calibration
from qprune.network.hold import Held, hold
from qprune.objective import EmpiricalFisher, ExactHessian, SampledFisher, SketchedFisher
from qprune.objective.losses import DenseOutputs, Labels, PerSample
from qprune.prune import Pruned, prune
from qprune.results import Score
from qprune.steps.compensate import Compensation
from solvers import FaultPolicy

__all__ = [
    "Calibration",
    "Compensation",
    "DenseOutputs",
    "EmpiricalFisher",
    "ExactHessian",
    "FaultPolicy",
    "Held",
    "Labels",
    "Mixup",
    "PerSample",
    "Pruned",
    "SampledFisher",
    "Score",
    "ShiftImages",
    "SketchedFisher",
    "hold",
    "prune",
]

"""Prune neural networks by solving restore-or-prune choices as binary quadratic models."""

import solvers

if not getattr(solvers, "QPRUNE_SOLVERS", False):
    raise ImportError(
        f"qprune needs its own package `solvers`, but Python found {solvers.__file__} first; "
        "rename that file, or run from another folder"
    )

from qprune.augment import Mixup, ShiftImages
from qprune.calibration import Calibration
from qprune.compensate import Compensation
from qprune.curvature import EmpiricalFisher, ExactHessian, SampledFisher, SketchedFisher
from qprune.hold import Held, hold
from qprune.losses import DenseOutputs, Labels, PerSample
from qprune.prune import Pruned, prune
from qprune.steps import Score

__all__ = [
    "Calibration",
    "Compensation",
    "DenseOutputs",
    "EmpiricalFisher",
    "ExactHessian",
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

"""Prune neural networks by solving restore-or-prune choices as binary quadratic models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import solvers

if not getattr(solvers, "QPRUNE_SOLVERS", False):
    raise ImportError(
        f"qprune needs its own package `solvers`, but Python found {solvers.__file__} first; "
        "rename that file, or run from another folder"
    )

from qprune.cost import Estimate
from qprune.data.augment import Augmentation, Mixup, OwnText, ShiftImages
from qprune.data.calibration import Calibration
from qprune.data.inputs import Call
from qprune.distributed.ranks import DataParallel, Ranks
from qprune.network.groups import Budget, Global, NofM, PerLayer, PerRow
from qprune.network.hold import Held, hold
from qprune.network.patterns import Pattern
from qprune.objective import EmpiricalFisher, ExactHessian, SampledFisher, SketchedFisher
from qprune.objective.curvature import Curvature
from qprune.objective.losses import DenseOutputs, Labels, Loss, PerSample
from qprune.objective.samples import Objective
from qprune.prune import Pruned, prune
from qprune.results import Observer, Report, Score, Step
from qprune.steps.compensate import Compensate, Compensation
from qprune.steps.distill import Distillation
from qprune.steps.reconstruct import OneShot, Reconstruct, RowMethod, SampledRows
from qprune.steps.select import Boundary, LayerByLayer, RandomPairs, Select
from qprune.steps.solve import BlockObserver
from qprune.steps.start import DiagonalFisher, Gradient, Magnitude, Random, Start, Wanda
from qprune.walk.journal import Limits
from qprune.walk.layerwise import Layerwise
from qprune.walk.networkwise import Networkwise
from qprune.walk.schedule import Method
from qprune.walk.sensitivity import Sensitivity
from solvers import FaultPolicy

if TYPE_CHECKING:
    from qprune.models.datasets import load_data
    from qprune.models.zoo import load_model

# Imported when first used: they bring data sets and networks with them.
_LAZY = {"load_data": "qprune.models.datasets", "load_model": "qprune.models.zoo"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Augmentation",
    "BlockObserver",
    "Boundary",
    "Budget",
    "Calibration",
    "Call",
    "Compensate",
    "Compensation",
    "Curvature",
    "DataParallel",
    "DenseOutputs",
    "DiagonalFisher",
    "Distillation",
    "EmpiricalFisher",
    "Estimate",
    "ExactHessian",
    "FaultPolicy",
    "Global",
    "Gradient",
    "Held",
    "Labels",
    "LayerByLayer",
    "Layerwise",
    "Limits",
    "Loss",
    "Magnitude",
    "Method",
    "Mixup",
    "Networkwise",
    "NofM",
    "Objective",
    "Observer",
    "OneShot",
    "OwnText",
    "Pattern",
    "PerLayer",
    "PerRow",
    "PerSample",
    "Pruned",
    "Random",
    "RandomPairs",
    "Ranks",
    "Reconstruct",
    "Report",
    "RowMethod",
    "SampledFisher",
    "SampledRows",
    "Score",
    "Select",
    "Sensitivity",
    "ShiftImages",
    "SketchedFisher",
    "Start",
    "Step",
    "Wanda",
    "hold",
    "load_data",
    "load_model",
    "prune",
]

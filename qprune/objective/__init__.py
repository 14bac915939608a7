"""Second-order models of the loss: matrices that approximate its curvature on a block."""

from qprune.objective.curvature import Expansion
from qprune.objective.fisher import EmpiricalFisher, SampledFisher, SketchedFisher
from qprune.objective.hessian import ExactHessian

#: Names on the command line.
CURVATURES = {
    "fisher": SketchedFisher(),
    "sampled": SampledFisher(),
    "empirical": EmpiricalFisher(),
    "hessian": ExactHessian(),
}

__all__ = [
    "CURVATURES",
    "EmpiricalFisher",
    "ExactHessian",
    "Expansion",
    "SampledFisher",
    "SketchedFisher",
]

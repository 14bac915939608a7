"""Second-order models of the loss: matrices that approximate its curvature on a block."""

from qprune.curvature.expansion import Expansion
from qprune.curvature.fisher import EmpiricalFisher, SampledFisher, SketchedFisher
from qprune.curvature.hessian import ExactHessian

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
